"""What runs at a site: the executor that answers the server's tasks."""
