"""The programs that ``capture_hellos`` runs where a client is a library: each connects once and may fail after that."""

PYTHON = '''
import socket, ssl, sys

if sys.argv[1] == "version":
    if sys.argv[2] == "openssl":
        from OpenSSL import SSL
        print("pyOpenSSL,", SSL.OpenSSL_version(0).decode())
    elif sys.argv[2] == "grpc":
        import grpc
        print("grpcio", grpc.__version__)
    else:
        print("Python", sys.version.split()[0] + ",", ssl.OPENSSL_VERSION)
    sys.exit()
what, port = sys.argv[1], int(sys.argv[2])


def connection():
    made = socket.socket()
    made.connect(("127.0.0.1", port))
    return made


def session_of(context, version):
    """The ticket of a handshake with a server of our own, in memory."""
    import trustme
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("origin.test").configure_cert(server_context)
    server_context.maximum_version = version
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname="origin.test")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    server.write(b"x")
    client.read(1)
    return client.session


if what.startswith("ssl"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    session = None
    if what == "ssl_tls12":
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if what == "ssl_tls12_ticket":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if what.endswith("ticket"):
        version = ssl.TLSVersion.TLSv1_2 if "12" in what else ssl.TLSVersion.TLSv1_3
        session = session_of(context, version)
    context.wrap_socket(connection(), server_hostname="origin.test", session=session)
elif what.startswith("openssl"):
    from OpenSSL import SSL
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([b"h2"])
    client = SSL.Connection(context, connection())
    client.set_tlsext_host_name(b"origin.test")
    client.set_connect_state()
    client.do_handshake()
elif what == "grpc":
    import grpc
    channel = grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(), options=[
        ("grpc.ssl_target_name_override", "origin.test"), ("grpc.enable_http_proxy", 0)])
    grpc.channel_ready_future(channel).result(timeout=10)
'''

NODE = """
const [port, what] = process.argv.slice(2);
const options = {host: "127.0.0.1", port, servername: "origin.test", rejectUnauthorized: false};
if (what === "tls") require("tls").connect(options);
if (what === "https") require("https").get(options);
if (what === "http2") require("http2").connect("https://origin.test", options);
"""

GO = """
package main

import (
	"crypto/tls"
	"net/http"
	"os"
)

func main() {
	switch os.Args[1] {
	case "get":
		http.Get("https://origin.test/")
	case "tls":
		tls.Dial("tcp", os.Args[2], &tls.Config{ServerName: "origin.test"})
	case "ech":
		// One ECHConfig: config_id 165, X25519 (the base point), HKDF-SHA256 and AES-128-GCM, public.test.
		key := make([]byte, 32)
		key[0] = 9
		contents := append([]byte{165, 0, 32, 0, 32}, key...)
		contents = append(contents, 0, 4, 0, 1, 0, 1, 0, 11)
		contents = append(contents, "public.test\\x00\\x00"...)
		list := append([]byte{0, byte(len(contents) + 4), 0xfe, 0x0d, 0, byte(len(contents))}, contents...)
		tls.Dial("tcp", os.Args[2], &tls.Config{
			ServerName: "secret.test", NextProtos: []string{"h2"}, EncryptedClientHelloConfigList: list})
	}
}
"""

JAVA = """
import java.net.*;
import java.net.http.*;

class Client {
    public static void main(String[] arguments) throws Exception {
        URI proxy = URI.create(arguments[0]);
        HttpClient client = HttpClient.newBuilder()
            .proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort()))).build();
        client.send(HttpRequest.newBuilder(URI.create("https://origin.test/")).build(),
            HttpResponse.BodyHandlers.discarding());
    }
}
"""
