"""Who may reach the server and come in: hosts, origins, address, sign-in."""
