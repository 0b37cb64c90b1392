"""Models of salesforce-lavis, and files in its format."""
