//! TLS and QUIC of a mesh, for each path.

use super::tuning::MeshTuning;
use crate::{ExpectedPeer, Identity, congestion::Farewell, session::SessionError};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{ClientConfig, EndpointConfig, ServerConfig};
use std::{net::IpAddr, sync::Arc};

/// Application protocol of the TLS handshake.
const ALPN: &[u8] = b"vmotion-mesh/1";

pub(super) struct Configs {
    identity: Arc<Identity>,
    tuning: MeshTuning,
    server: ServerConfig,
}

impl Configs {
    pub(super) fn new(identity: Arc<Identity>, tuning: MeshTuning) -> Result<Self, SessionError> {
        let mut tls = identity.server_config()?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| SessionError::Setup(error.to_string()))?;
        Ok(Self { identity, tuning, server: ServerConfig::with_crypto(Arc::new(crypto)) })
    }

    pub(super) fn endpoint(&self) -> (EndpointConfig, ServerConfig) {
        (self.tuning.endpoint(), self.server.clone())
    }

    /// For a caller from `address`.
    pub(super) fn server(&self, address: IpAddr, farewell: &Farewell) -> Arc<ServerConfig> {
        let mut config = self.server.clone();
        config.transport_config(self.tuning.transport(address, farewell));
        Arc::new(config)
    }

    /// To call `expected` at `address`.
    pub(super) fn client(
        &self,
        expected: &ExpectedPeer,
        address: IpAddr,
        farewell: &Farewell,
    ) -> Result<ClientConfig, SessionError> {
        let mut tls = self.identity.client_config(expected.clone())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| SessionError::Setup(error.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.tuning.transport(address, farewell));
        Ok(config)
    }
}
