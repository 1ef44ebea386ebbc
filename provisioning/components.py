"""The components that a job may name at a site; a site's FLARE refuses every other class."""

CLASS_ALLOW_LIST = ["server.federation.Federation", "clients.executor.SiteExecutor"]
