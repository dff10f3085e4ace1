// Istio's agent, its control plane and `istioctl manifest` in one static binary. The name it is called by, or its first
// argument, selects the program.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	mesh "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/istioctl/pkg/cli"
	manifest "istio.io/istio/operator/cmd/mesh"
	agent "istio.io/istio/pilot/cmd/pilot-agent/app"
	discovery "istio.io/istio/pilot/cmd/pilot-discovery/app"
	istioagent "istio.io/istio/pkg/istio-agent"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/sds"
)

var programs = map[string]func() *cobra.Command{
	"pilot-agent":     func() *cobra.Command { return agent.NewRootCommand(secretServer) },
	"pilot-discovery": discovery.NewRootCommand,
	"manifest":        func() *cobra.Command { return manifest.ManifestCmd(cli.NewCLIContext(nil)) },
}

func secretServer(options *security.Options, secrets security.SecretManager, key *mesh.PrivateKeyProvider) istioagent.SDSService {
	return sds.NewServer(options, secrets, key)
}

func main() {
	program := programs[filepath.Base(os.Args[0])]
	if program == nil && len(os.Args) > 1 {
		program, os.Args = programs[os.Args[1]], os.Args[1:]
	}
	if program == nil {
		fmt.Fprintln(os.Stderr, "usage: istio pilot-agent|pilot-discovery|manifest …")
		os.Exit(2)
	}
	log.EnableKlogWithCobra()
	if err := program().Execute(); err != nil {
		log.Error(err)
		os.Exit(255)
	}
}
