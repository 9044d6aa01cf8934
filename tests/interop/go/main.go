// A foreign client of the CA: Go's gRPC, Istio's own messages, and go-spiffe for everything that is SPIFFE's.
//
// It gets one certificate by a join token and with that a second over mutual TLS, verifies both against the bundle that
// the CA's operator prints, and has the two meet as server and client. It prints one JSON object of what it saw.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	security "istio.io/api/security/v1alpha1"
)

type seen struct {
	ByToken    string   `json:"by_token"`
	ByMTLS     string   `json:"by_mtls"`
	ForAnother string   `json:"for_another"`
	Sequence   uint64   `json:"sequence"`
	Elements   int      `json:"elements"`
	Refused    []string `json:"refused"`
	Said       string   `json:"said"`
	ServerSaw  string   `json:"server_saw"`
	ClientSaw  string   `json:"client_saw"`
	Stranger   string   `json:"stranger"`
}

type client struct {
	address, name string
	bundle        *spiffebundle.Bundle
	svid          *x509svid.SVID
}

func main() {
	address := flag.String("address", "", "host:port of the CA")
	name := flag.String("name", "istiod.istio-system.svc", "the server's name")
	bundle := flag.String("bundle", "", "file with the SPIFFE bundle")
	token := flag.String("token-file", "", "file with a join token")
	domain := flag.String("trust-domain", "cluster.local", "the trust domain")
	workload := flag.String("workload", "", "an identity registered for the agent")
	flag.Parse()
	found, err := run(*address, *name, *bundle, *token, *domain, *workload)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(found)
}

func run(address, name, bundleFile, tokenFile, domain, workload string) (*seen, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return nil, err
	}
	bundle, err := spiffebundle.Load(td, bundleFile)
	if err != nil {
		return nil, fmt.Errorf("the bundle: %w", err)
	}
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, err
	}
	found := &seen{}
	found.Sequence, _ = bundle.SequenceNumber()

	nobody := &client{address, name, bundle, nil}
	_, _, err = nobody.create(ctx, "", "")
	found.Refused = append(found.Refused, status.Code(err).String())
	agent, elements, err := nobody.create(ctx, strings.TrimSpace(string(token)), "")
	if err != nil {
		return nil, fmt.Errorf("by token: %w", err)
	}
	found.ByToken, found.Elements = agent.ID.String(), elements
	if _, _, err = nobody.create(ctx, strings.TrimSpace(string(token)), ""); status.Code(err) == codes.OK {
		return nil, fmt.Errorf("a join token was good twice")
	}
	found.Refused = append(found.Refused, status.Code(err).String())

	known := &client{address, name, bundle, agent}
	renewed, _, err := known.create(ctx, "", "")
	if err != nil {
		return nil, fmt.Errorf("by mutual TLS: %w", err)
	}
	found.ByMTLS = renewed.ID.String()
	web, _, err := known.create(ctx, "", workload)
	if err != nil {
		return nil, fmt.Errorf("for a workload: %w", err)
	}
	found.ForAnother = web.ID.String()
	_, _, err = known.create(ctx, "", "spiffe://"+domain+"/nobody")
	found.Refused = append(found.Refused, status.Code(err).String())
	return found, meet(ctx, found, bundle, web, renewed)
}

// create asks for a certificate, and has go-spiffe judge what comes.
func (c *client) create(ctx context.Context, token, wanted string) (*x509svid.SVID, int, error) {
	roots := x509.NewCertPool()
	for _, root := range c.bundle.X509Authorities() {
		roots.AddCert(root)
	}
	config := &tls.Config{RootCAs: roots, ServerName: c.name, MinVersion: tls.VersionTLS12}
	if c.svid != nil {
		config.GetClientCertificate = tlsconfig.GetClientCertificate(c.svid)
	}
	connection, err := grpc.NewClient(c.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return nil, 0, err
	}
	defer connection.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, 0, err
	}
	csr, err := request(key)
	if err != nil {
		return nil, 0, err
	}
	asked := &security.IstioCertificateRequest{Csr: csr, ValidityDuration: 600}
	asked.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"CertSigner": structpb.NewStringValue("")}}
	if wanted != "" {
		asked.Metadata.Fields["ImpersonatedIdentity"] = structpb.NewStringValue(wanted)
	}
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "ClusterID", "Kubernetes")
	}
	reply, err := security.NewIstioCertificateServiceClient(connection).CreateCertificate(ctx, asked)
	if err != nil {
		return nil, 0, err
	}
	return c.judged(reply.CertChain, key)
}

func (c *client) judged(elements []string, key *ecdsa.PrivateKey) (*x509svid.SVID, int, error) {
	if len(elements) < 2 {
		return nil, 0, fmt.Errorf("%d elements", len(elements))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, 0, err
	}
	chain := strings.Join(elements[:len(elements)-1], "")
	svid, err := x509svid.Parse([]byte(chain), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return nil, 0, err
	}
	if _, _, err = x509svid.Verify(svid.Certificates, c.bundle); err != nil {
		return nil, 0, fmt.Errorf("the certificate: %w", err)
	}
	return svid, len(elements), nil
}

func request(key *ecdsa.PrivateKey) (string, error) {
	wish, _ := url.Parse("spiffe://cluster.local/whatever/it/says")
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{wish}}, key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), err
}

// meet has a server and a client of spiffetls shake hands, and then the same with a client that is not welcome.
func meet(ctx context.Context, found *seen, bundle *spiffebundle.Bundle, server, caller *x509svid.SVID) error {
	mode := spiffetls.MTLSServerWithRawConfig(tlsconfig.AuthorizeID(caller.ID), server, bundle)
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", mode)
	if err != nil {
		return err
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() { served <- serve(listener, found) }()
	if found.Said, err = say(ctx, listener.Addr(), found, bundle, server.ID, caller); err != nil {
		return err
	}
	if err = <-served; err != nil {
		return err
	}
	go func() { served <- serve(listener, found) }()
	_, _ = say(ctx, listener.Addr(), found, bundle, server.ID, server) // valid in every respect, but not the one
	if err = <-served; err == nil {
		return fmt.Errorf("a stranger was let in")
	}
	found.Stranger = err.Error()
	return nil
}

func serve(listener net.Listener, found *seen) error {
	connection, err := listener.Accept()
	if err != nil {
		return err
	}
	defer connection.Close()
	words := make([]byte, 4)
	if _, err = io.ReadFull(connection, words); err != nil {
		return err
	}
	peer, err := spiffetls.PeerIDFromConn(connection)
	if err != nil {
		return err
	}
	found.ServerSaw = peer.String()
	_, err = connection.Write(words)
	return err
}

func say(ctx context.Context, to net.Addr, found *seen, bundle *spiffebundle.Bundle, who spiffeid.ID, as *x509svid.SVID) (string, error) {
	mode := spiffetls.MTLSClientWithRawConfig(tlsconfig.AuthorizeID(who), as, bundle)
	connection, err := spiffetls.DialWithMode(ctx, "tcp", to.String(), mode)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	if _, err = connection.Write([]byte("ping")); err != nil {
		return "", err
	}
	words := make([]byte, 4)
	if _, err = io.ReadFull(connection, words); err != nil {
		return "", err
	}
	peer, err := spiffetls.PeerIDFromConn(connection)
	if err != nil {
		return "", err
	}
	found.ClientSaw = peer.String()
	return string(words), nil
}
