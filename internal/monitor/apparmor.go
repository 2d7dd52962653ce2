package monitor

// The AppArmor profile of containers that name none.

import (
	"fmt"

	"github.com/moby/profiles/apparmor"

	"keg/internal/linux"
	"keg/internal/sandbox"
)

// defaultAppArmor returns Docker's default profile under our name, loaded, or "" where there is no AppArmor. A host that has it but not
// what loads a profile is told about, and containers run with the rest of their confinement.
func defaultAppArmor() string {
	if !linux.HasAppArmor() {
		return ""
	}
	if on, err := apparmor.IsLoaded(sandbox.OwnProfile); err == nil && on {
		return sandbox.OwnProfile
	}
	if err := apparmor.InstallDefault(sandbox.OwnProfile); err != nil {
		complain(fmt.Errorf("warning: AppArmor is on, but the profile %s cannot be loaded, so containers run without it (install apparmor_parser, mount securityfs on /sys/kernel/security): %w", sandbox.OwnProfile, err))
		return ""
	}
	return sandbox.OwnProfile
}
