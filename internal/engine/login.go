package engine

import (
	"context"

	"keg/internal/registry"
)

// Login checks credentials with a registry and saves them as Docker does.
func (e *Engine) Login(ctx context.Context, registry string, c registry.Credentials) (string, error) {
	return e.remote.Login(ctx, registry, c)
}

// Logout forgets them.
func (e *Engine) Logout(ctx context.Context, registry string) error {
	return e.remote.Logout(ctx, registry)
}

// StoredCredentials returns the credentials saved for a registry.
func (e *Engine) StoredCredentials(ctx context.Context, host string) (registry.Credentials, error) {
	return e.remote.Stored(ctx, host)
}
