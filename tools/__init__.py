"""Programs of the project that users of the package don't need."""
