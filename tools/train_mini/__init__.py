"""How the embedded mini models were trained."""
