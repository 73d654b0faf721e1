//! A place far away: a TLS front before a local server, a round trip from whoever connects to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A front, with TLS 1.3 and HTTP/2 where the client offers them. Dropping it ends it.
#[derive(Debug)]
pub struct LatencyProxy {
    address: SocketAddr,
    certificate: String,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for LatencyProxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl LatencyProxy {
    /// Puts a server `round_trip` away.
    ///
    /// # Errors
    /// No port can be opened, no certificate made.
    pub async fn from(server: SocketAddr, round_trip: Duration) -> anyhow::Result<Self> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "a CA of the rehearsal's own");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?).context("make a CA")?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &ca).context("sign")?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.into()], private)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let near = TcpListener::bind("127.0.0.1:0").await.context("open a port")?;
        let near_address = near.local_addr()?;
        let tls = tokio::spawn(async move {
            while let Ok((stream, _)) = near.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // As servers do: an answer that waits for the acknowledgement of a TLS session ticket is late by 40 ms.
                    let _ = stream.set_nodelay(true);
                    let (Ok(mut client), Ok(mut server)) =
                        (acceptor.accept(stream).await, TcpStream::connect(server).await)
                    else {
                        return;
                    };
                    let _ = server.set_nodelay(true);
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        let far = TcpListener::bind("127.0.0.1:0").await.context("open a port")?;
        let address = far.local_addr()?;
        let delay = tokio::spawn(async move {
            while let Ok((stream, _)) = far.accept().await {
                tokio::spawn(async move {
                    // The kernel has shaken hands already; it would have taken a round trip.
                    sleep(round_trip).await;
                    let Ok(server) = TcpStream::connect(near_address).await else { return };
                    let _ = (stream.set_nodelay(true), server.set_nodelay(true));
                    let (from_client, to_client) = stream.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::join!(
                        carry(from_client, to_server, round_trip / 2),
                        carry(from_server, to_client, round_trip / 2)
                    );
                });
            }
        });
        Ok(Self { address, certificate: ca.pem(), tasks: vec![tls, delay] })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// The certificate to trust, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }
}

/// Bytes arrive so much later, however many are under way.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (send, mut receive) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if send.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receive.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
