// Istio's own agent as far as a CA sees it: its secret cache over its citadel client asks for a certificate, and the
// two secrets are printed that it would give to Envoy, with what Istio's own verification says of them.
package main

import (
	"crypto/x509"
	"encoding/json"
	"flag"
	"os"
	"time"

	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/credentialfetcher"
	"istio.io/istio/security/pkg/nodeagent/cache"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	pkiutil "istio.io/istio/security/pkg/pki/util"
)

type answer struct {
	Error    string `json:"error,omitempty"`
	Chain    string `json:"chain,omitempty"`
	Root     string `json:"root,omitempty"`
	Verified string `json:"verified,omitempty"`
}

func main() {
	roots := flag.String("roots", "", "the file with the roots that the CA is known by")
	token := flag.String("token", "", "the file with the service-account token")
	identity := flag.String("identity", "", "the SPIFFE ID that is due")
	options := &security.Options{
		ClusterID:                      "Kubernetes",
		TrustDomain:                    "cluster.local",
		SecretTTL:                      time.Hour,
		SecretRotationGracePeriodRatio: 0.5,
		WorkloadRSAKeySize:             2048,
		Pkcs8Keys:                      true,
	}
	flag.StringVar(&options.CAEndpoint, "address", "", "of the CA")
	flag.StringVar(&options.CAEndpointSAN, "name", "", "in the CA's certificate; that of the address if empty")
	flag.StringVar(&options.WorkloadNamespace, "namespace", "", "of the workload")
	flag.StringVar(&options.ServiceAccount, "account", "", "of the workload")
	flag.StringVar(&options.ECCSigAlg, "algorithm", "", "of the key: ECDSA; RSA if empty")
	flag.Parse()
	quiet()
	given, err := ask(options, *roots, *token, *identity)
	if err != nil {
		given.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(given); err != nil {
		panic(err)
	}
}

// Standard output is for the answer.
func quiet() {
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	if err := log.Configure(options); err != nil {
		panic(err)
	}
}

func ask(options *security.Options, roots, token, identity string) (answer, error) {
	fetcher, err := credentialfetcher.NewCredFetcher(security.JWT, options.TrustDomain, token, "")
	if err != nil {
		return answer{}, err
	}
	options.CredFetcher = fetcher
	client, err := citadel.NewCitadelClient(options, &citadel.TLSOptions{RootCert: roots})
	if err != nil {
		return answer{}, err
	}
	secrets, err := cache.NewSecretManagerClient(client, options)
	if err != nil {
		return answer{}, err
	}
	defer secrets.Close()
	workload, err := secrets.GenerateSecret(security.WorkloadKeyCertResourceName)
	if err != nil {
		return answer{}, err
	}
	root, err := secrets.GenerateSecret(security.RootCertReqResourceName)
	if err != nil {
		return answer{}, err
	}
	given := answer{Chain: string(workload.CertificateChain), Root: string(root.RootCert), Verified: "yes"}
	fields := &pkiutil.VerifyFields{ // what Istio's own CA gives, save what RFC 8813 3 does not allow of ECDSA
		Host:        identity,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature,
	}
	if options.ECCSigAlg == "" {
		fields.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	if err := pkiutil.VerifyCertificate(workload.PrivateKey, workload.CertificateChain, root.RootCert, fields); err != nil {
		given.Verified = err.Error()
	}
	return given, nil
}
