//! TLS under axum: every connection shows a certificate of our CA, and handlers learn whose.

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use vmotion_transport::{Identity, IdentityError, Principal};

/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Finished handshakes waiting to be served, and handshakes in progress.
const PENDING_MAX: usize = 64;

/// Who called: extracted with `ConnectInfo<Caller>`.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whom the certificate speaks for; `None` when it is of our CA but names nobody.
    pub principal: Option<Principal>,
    /// From where.
    pub address: SocketAddr,
}

/// Accepts TLS connections. Handshakes run beside each other: a slow client delays nobody.
#[derive(Debug)]
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Serves TLS on `listener` as `identity`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`IdentityError`] when the certificate cannot be used.
    pub fn new(listener: TcpListener, identity: &Identity) -> Result<Self, IdentityError> {
        let acceptor = TlsAcceptor::from(Arc::new(identity.server_config()?));
        let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)));
        let (sender, ready) = mpsc::channel(PENDING_MAX);
        tokio::spawn(accept_forever(listener, acceptor, sender));
        Ok(Self { ready, address })
    }
}

async fn accept_forever(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let slots = Arc::new(tokio::sync::Semaphore::new(PENDING_MAX));
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the client went away: neither ends the service.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = ready.closed() => return,
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(ready.send((stream, address)).await),
                Ok(Err(error)) => tracing::warn!(%address, %error, "turned a client away"),
                Err(_) => tracing::warn!(%address, "turned a client away: its handshake took too long"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The accepting task only ends with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        let (_, connection) = stream.io().get_ref();
        let principal = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(|leaf| Principal::of_certificate(leaf).ok());
        Self { principal, address: *stream.remote_addr() }
    }
}

/// Serves `router` on `listener` until `stop` completes; requests in progress are finished first.
///
/// # Errors
/// What axum reports.
pub async fn serve(
    listener: TlsListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router.into_make_service_with_connect_info::<Caller>()).with_graceful_shutdown(stop).await
}
