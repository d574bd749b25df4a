"""What a person sees. Knows the store only as an object it is handed; imports no torch and no SQL."""
