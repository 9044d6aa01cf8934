// Go's gRPC with go-spiffe's credentials as the other end of a gRPC service of ours: a client, or a server until its
// input ends. Client and server know each other by SPIFFE ID alone. It prints one JSON object of what it saw.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type seen struct {
	Answer string   `json:"answer"`
	Peer   string   `json:"peer"`
	Chat   []string `json:"chat"`
	Code   string   `json:"code"`
}

func main() {
	dial := flag.String("dial", "", "host:port of the server; none to serve")
	files := flag.String("files", "", "folder with svid.pem, key.pem and bundle.pem")
	expected := flag.String("peer", "", "the SPIFFE ID that the other end must have")
	flag.Parse()
	if err := run(*dial, *files, spiffeid.RequireFromString(*expected)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dial, files string, expected spiffeid.ID) error {
	svid, err := x509svid.Load(files+"/svid.pem", files+"/key.pem")
	if err != nil {
		return err
	}
	bundle, err := x509bundle.Load(svid.ID.TrustDomain(), files+"/bundle.pem")
	if err != nil {
		return err
	}
	if dial == "" {
		return serve(svid, bundle, expected)
	}
	found := &seen{}
	err = ask(dial, found, svid, bundle, expected)
	found.Code = status.Code(err).String()
	return json.NewEncoder(os.Stdout).Encode(found)
}

func ask(address string, found *seen, svid *x509svid.SVID, bundle *x509bundle.Bundle, expected spiffeid.ID) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	proof := grpccredentials.MTLSClientCredentials(svid, bundle, tlsconfig.AuthorizeID(expected))
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(proof))
	if err != nil {
		return err
	}
	defer connection.Close()
	answer := &wrapperspb.StringValue{}
	if err = connection.Invoke(ctx, "/test.Talk/Echo", wrapperspb.String("hello"), answer); err != nil {
		return err
	}
	found.Answer = answer.Value
	both := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	stream, err := connection.NewStream(ctx, both, "/test.Talk/Chat")
	if err != nil {
		return err
	}
	for _, word := range []string{"a", "b"} {
		if err = stream.SendMsg(wrapperspb.String(word)); err != nil {
			return err
		}
		if err = stream.RecvMsg(answer); err != nil {
			return err
		}
		found.Chat = append(found.Chat, answer.Value)
	}
	if err = stream.CloseSend(); err != nil {
		return err
	}
	if err = stream.RecvMsg(answer); err != io.EOF {
		return fmt.Errorf("the stream did not end: %v", err)
	}
	return nil
}

func serve(svid *x509svid.SVID, bundle *x509bundle.Bundle, expected spiffeid.ID) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	proof := grpccredentials.MTLSServerCredentials(svid, bundle, tlsconfig.AuthorizeID(expected))
	server := grpc.NewServer(grpc.Creds(proof), grpc.UnknownServiceHandler(name))
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		server.Stop()
	}()
	return server.Serve(listener)
}

// name answers each request with the caller's SPIFFE ID.
func name(_ any, stream grpc.ServerStream) error {
	peer, ok := grpccredentials.PeerIDFromContext(stream.Context())
	if !ok {
		return fmt.Errorf("nobody")
	}
	for {
		request := &wrapperspb.StringValue{}
		if err := stream.RecvMsg(request); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.String(peer.String())); err != nil {
			return err
		}
	}
}
