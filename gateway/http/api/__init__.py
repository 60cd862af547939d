"""The HTTP API: resources and their OpenAPI description."""
