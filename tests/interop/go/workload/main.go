// A workload of go-spiffe, as its users write one. It follows its X509-SVIDs; for each line "meet" of its input, two ends
// that know their SVIDs from the agent alone shake hands; for each "token" it asks for a JWT-SVID. It prints one JSON
// object for each thing that happens.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

const patience = 60 * time.Second

// told is printed: an update and its leaf's serial number, what a call failed with, or who was at the other end.
type told struct {
	Update string `json:"update,omitempty"`
	Serial string `json:"serial,omitempty"`
	Code   string `json:"code,omitempty"`
	Words  string `json:"words,omitempty"`
	Peer   string `json:"peer,omitempty"`
	Error  string `json:"error,omitempty"`
}

var printing sync.Mutex

func tell(what told) {
	printing.Lock()
	defer printing.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(what)
}

func tellFailure(err error) {
	tell(told{Code: status.Code(err).String(), Words: status.Convert(err).Message()})
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(seen *workloadapi.X509Context) {
	svid := seen.DefaultSVID()
	tell(told{Update: svid.ID.String(), Serial: fmt.Sprintf("%x", svid.Certificates[0].SerialNumber)})
}

func (watcher) OnX509ContextWatchError(err error) { tellFailure(err) }

func main() {
	domain := flag.String("trust-domain", "cluster.local", "the trust domain of both ends")
	flag.Parse()
	if err := run(context.Background(), spiffeid.RequireTrustDomainFromString(*domain)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, domain spiffeid.TrustDomain) error {
	client, err := workloadapi.New(ctx) // at SPIFFE_ENDPOINT_SOCKET
	if err != nil {
		return err
	}
	go func() { tellFailure(client.WatchX509Context(ctx, watcher{})) }()
	source, err := workloadapi.NewX509Source(ctx) // waits for its first SVID
	if err != nil {
		return err
	}
	listener, err := spiffetls.Listen(ctx, "tcp", "127.0.0.1:0", tlsconfig.AuthorizeMemberOf(domain))
	if err != nil {
		return err
	}
	go answer(listener)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "meet":
			met, err := meet(ctx, listener.Addr(), domain, source)
			if err != nil {
				met.Error = err.Error()
			}
			tell(met)
		case "token":
			_, err = client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "another"})
			tellFailure(err)
		}
	}
	return nil
}

func answer(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer connection.Close()
			_ = connection.SetDeadline(time.Now().Add(patience))
			if _, err := connection.Read(make([]byte, 1)); err != nil { // the handshake is over then, and not before
				return
			}
			if peer, err := spiffetls.PeerIDFromConn(connection); err == nil {
				_, _ = connection.Write([]byte(peer.String()))
			}
		}()
	}
}

// meet has the server say who it saw, which only happens after both ends have accepted each other.
func meet(ctx context.Context, to net.Addr, domain spiffeid.TrustDomain, source *workloadapi.X509Source) (told, error) {
	mode := spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeMemberOf(domain), source)
	connection, err := spiffetls.DialWithMode(ctx, to.Network(), to.String(), mode)
	if err != nil {
		return told{}, err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(patience))
	if _, err = connection.Write([]byte("?")); err != nil {
		return told{}, err
	}
	words := make([]byte, 2048)
	size, err := connection.Read(words)
	if err != nil {
		return told{}, err
	}
	leaf := connection.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState().PeerCertificates[0]
	return told{Peer: string(words[:size]), Serial: fmt.Sprintf("%x", leaf.SerialNumber)}, nil
}
