// The table of commands.

package cli

// commands are the words after the program's name. A function, since a table with
// constructors at package level would be a cycle of initialisation.
func commands() []entry {
	return []entry{
		{name: "run", short: "Create and run a new container from an image", top: 1, make: newRun},
		{name: "exec", short: "Execute a command in a running container", top: 2, make: newExec},
		{name: "ps", short: "List containers", top: 3, make: newPs},
		{name: "build", short: "Build an image from a Dockerfile", top: 4, make: newBuild},
		{name: "pull", short: "Download an image from a registry", top: 5, make: newPull},
		{name: "push", short: "Upload an image to a registry", top: 6, make: newPush},
		{name: "images", short: "List images", top: 7, make: newImages},
		{name: "login", short: "Authenticate to a registry", top: 8, make: newLogin},
		{name: "logout", short: "Log out from a registry", top: 9, make: newLogout},
		{name: "version", short: "Show the version information", top: 10, make: newVersion},
		{name: "info", short: "Display system-wide information", top: 11, make: newInfo},

		{name: "builder", short: "Manage builds", sub: builderCommands},
		{name: "buildx", short: "Manage builds, in the words of docker buildx", sub: buildxCommands},
		{name: "compose", short: "Run Docker Compose against this engine", make: newCompose},
		{name: "container", short: "Manage containers", sub: containerCommands},
		{name: "context", short: "Manage contexts", sub: contextCommands},
		{name: "image", short: "Manage images", sub: imageCommands},
		{name: "manifest", short: "Manage image manifests and manifest lists", sub: manifestCommands},
		{name: "network", short: "Manage networks", sub: networkCommands},
		{name: "registry", short: "Serve a registry", sub: registryCommands},
		{name: "serve", short: "Answer the Docker Engine API", make: newServe},
		{name: "system", short: "Manage the engine", sub: systemCommands},
		{name: "volume", short: "Manage volumes", sub: volumeCommands},

		{name: "attach", short: "Attach local standard input, output, and error streams to a running container", make: newAttach},
		{name: "commit", short: "Create a new image from a container's changes", make: newCommit},
		{name: "cp", short: "Copy files/folders between a container and the local filesystem", make: newCp},
		{name: "create", short: "Create a new container", make: newCreate},
		{name: "diff", short: "Inspect changes to files or directories on a container's filesystem", make: newDiff},
		{name: "events", short: "Show what happens, as it happens", make: newEvents},
		{name: "export", short: "Export a container's filesystem as a tar archive", make: newExport},
		{name: "history", short: "Show the history of an image", make: newHistory},
		{name: "import", short: "Import the contents from a tarball to create a filesystem image", make: newImport},
		{name: "inspect", short: "Return low-level information on containers, images, volumes and networks", make: newInspect},
		{name: "kill", short: "Kill one or more running containers", make: newKill},
		{name: "load", short: "Load an image from a tar archive or STDIN", make: newLoad},
		{name: "logs", short: "Fetch the logs of a container", make: newLogs},
		{name: "oci", short: "Run bundles: an OCI runtime with runc's command line", make: newOCI},
		{name: "pause", short: "Pause all processes within one or more containers", make: newPause},
		{name: "port", short: "List port mappings or a specific mapping for the container", make: newPort},
		{name: "rename", short: "Rename a container", make: newRename},
		{name: "restart", short: "Restart one or more containers", make: newRestart},
		{name: "rm", short: "Remove one or more containers", make: newRm},
		{name: "rmi", short: "Remove one or more images", make: newRmi},
		{name: "save", short: "Save one or more images to a tar archive (streamed to STDOUT by default)", make: newSave},
		{name: "search", short: "Search Docker Hub for images", make: newSearch},
		{name: "start", short: "Start one or more stopped containers", make: newStart},
		{name: "stats", short: "Display a live stream of container(s) resource usage statistics", make: newStats},
		{name: "stop", short: "Stop one or more running containers", make: newStop},
		{name: "tag", short: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", make: newTag},
		{name: "top", short: "Display the running processes of a container", make: newTop},
		{name: "unpause", short: "Unpause all processes within one or more containers", make: newUnpause},
		{name: "update", short: "Update configuration of one or more containers", make: newUpdate},
		{name: "wait", short: "Block until one or more containers stop, then print their exit codes", make: newWait},
		{name: "why", short: "Tell who refers to an object and what would free it", make: newWhy},
	}
}

func containerCommands() []entry {
	return []entry{
		{name: "attach", short: "Attach local standard input, output, and error streams to a running container", make: newAttach},
		{name: "commit", short: "Create a new image from a container's changes", make: newCommit},
		{name: "cp", short: "Copy files/folders between a container and the local filesystem", make: newCp},
		{name: "create", short: "Create a new container", make: newCreate},
		{name: "diff", short: "Inspect changes to files or directories on a container's filesystem", make: newDiff},
		{name: "exec", short: "Execute a command in a running container", make: newExec},
		{name: "export", short: "Export a container's filesystem as a tar archive", make: newExport},
		{name: "inspect", short: "Display detailed information on one or more containers", make: newContainerInspect},
		{name: "kill", short: "Kill one or more running containers", make: newKill},
		{name: "logs", short: "Fetch the logs of a container", make: newLogs},
		{name: "ls", short: "List containers", make: newPs},
		{name: "pause", short: "Pause all processes within one or more containers", make: newPause},
		{name: "port", short: "List port mappings or a specific mapping for the container", make: newPort},
		{name: "prune", short: "Remove all stopped containers", make: newContainerPrune},
		{name: "rename", short: "Rename a container", make: newRename},
		{name: "restart", short: "Restart one or more containers", make: newRestart},
		{name: "rm", short: "Remove one or more containers", make: newRm},
		{name: "run", short: "Create and run a new container from an image", make: newRun},
		{name: "start", short: "Start one or more stopped containers", make: newStart},
		{name: "stats", short: "Display a live stream of container(s) resource usage statistics", make: newStats},
		{name: "stop", short: "Stop one or more running containers", make: newStop},
		{name: "top", short: "Display the running processes of a container", make: newTop},
		{name: "unpause", short: "Unpause all processes within one or more containers", make: newUnpause},
		{name: "update", short: "Update configuration of one or more containers", make: newUpdate},
		{name: "wait", short: "Block until one or more containers stop, then print their exit codes", make: newWait},
	}
}

func imageCommands() []entry {
	return []entry{
		{name: "analyze", short: "Tell why an image is heavy", make: newImageAnalyze},
		{name: "build", short: "Build an image from a Dockerfile", make: newBuild},
		{name: "history", short: "Show the history of an image", make: newHistory},
		{name: "import", short: "Import the contents from a tarball to create a filesystem image", make: newImport},
		{name: "inspect", short: "Display detailed information on one or more images", make: newImageInspect},
		{name: "load", short: "Load an image from a tar archive or STDIN", make: newLoad},
		{name: "ls", short: "List images", make: newImages},
		{name: "prune", short: "Remove unused images", make: newImagePrune},
		{name: "pull", short: "Download an image from a registry", make: newPull},
		{name: "push", short: "Upload an image to a registry", make: newPush},
		{name: "rm", short: "Remove one or more images", make: newRmi},
		{name: "save", short: "Save one or more images to a tar archive (streamed to STDOUT by default)", make: newSave},
		{name: "tag", short: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", make: newTag},
		{name: "tree", short: "List images with their platforms", make: newImageTree},
	}
}

func volumeCommands() []entry {
	return []entry{
		{name: "clone", short: "Copy a volume under a new name", make: newVolumeClone},
		{name: "create", short: "Create a volume", make: newVolumeCreate},
		{name: "export", short: "Write the files of a volume as a tar archive", make: newVolumeExport},
		{name: "import", short: "Unpack a tar archive into a volume", make: newVolumeImport},
		{name: "inspect", short: "Display detailed information on one or more volumes", make: newVolumeInspect},
		{name: "ls", short: "List volumes", make: newVolumeLs},
		{name: "prune", short: "Remove unused local volumes", make: newVolumePrune},
		{name: "rename", short: "Rename a volume that no container refers to", make: newVolumeRename},
		{name: "rm", short: "Remove one or more volumes", make: newVolumeRm},
	}
}

func networkCommands() []entry {
	return []entry{
		{name: "connect", short: "Connect a container to a network", make: newNetworkConnect},
		{name: "create", short: "Create a network", make: newNetworkCreate},
		{name: "disconnect", short: "Disconnect a container from a network", make: newNetworkDisconnect},
		{name: "inspect", short: "Display detailed information on one or more networks", make: newNetworkInspect},
		{name: "ls", short: "List networks", make: newNetworkLs},
		{name: "prune", short: "Remove all unused networks", make: newNetworkPrune},
		{name: "reload", short: "Write the firewall's rules again", make: newNetworkReload},
		{name: "rm", short: "Remove one or more networks", make: newNetworkRm},
	}
}

func systemCommands() []entry {
	return []entry{
		{name: "check", short: "Verify what is stored and say what is damaged", make: newCheck},
		{name: "df", short: "Show disk usage", make: newDf},
		{name: "events", short: "Show what happens, as it happens", make: newEvents},
		{name: "info", short: "Display system-wide information", make: newInfo},
		{name: "install", short: "Install a systemd unit that starts containers after a boot", make: newSystemInstall},
		{name: "prune", short: "Remove unused data", make: newSystemPrune},
	}
}

func builderCommands() []entry {
	return []entry{
		{name: "build", short: "Build an image from a Dockerfile", make: newBuild},
		{name: "du", short: "Show what the build cache keeps, and why", make: newBuilderDu},
		{name: "prune", short: "Remove build cache", make: newBuilderPrune},
	}
}

func registryCommands() []entry {
	return []entry{
		{name: "check", short: "Check the configuration file of a registry", make: newRegistryCheck},
		{name: "serve", short: "Serve an OCI registry", make: newRegistryServe},
	}
}

// longForm tells group and name of a short command, shortForm the way back.
func longForm(short string) (group, name string) {
	switch short {
	case "ps":
		return "container", "ls"
	case "images":
		return "image", "ls"
	case "rmi":
		return "image", "rm"
	case "build", "history", "import", "load", "pull", "push", "save", "tag":
		return "image", short
	case "events", "info":
		return "system", short
	case "attach", "commit", "cp", "create", "diff", "exec", "export", "kill", "logs", "pause", "port", "rename", "restart",
		"rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait":
		return "container", short
	}
	return "", ""
}

func shortForm(group, name string) string {
	for _, short := range []string{name, "ps", "images", "rmi"} {
		if g, n := longForm(short); g == group && n == name {
			return short
		}
	}
	return ""
}
