//! The agent as a service.

use crate::{
    heartbeat, host, http,
    supervisor::Supervisor,
    telemetry::{self, Latest},
};
use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use vmotion_api::{ControllerClient, HostReport, TlsListener};
use vmotion_model::{ByteSize, CpuModel, DatacenterName, HostName, MachineStatus};
use vmotion_transport::{Identity, Principal};

/// How an agent runs.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The host's name; its certificate must say the same.
    pub name: HostName,
    /// Where it stands.
    pub datacenter: DatacenterName,
    /// Everything it keeps.
    pub data: PathBuf,
    /// Where its API listens.
    pub listen: SocketAddr,
    /// Address by which controller and other hosts reach it; `None` for the one it listens on.
    pub advertise: Option<IpAddr>,
    /// UDP ports for arriving machines.
    pub move_ports: RangeInclusive<u16>,
    /// Silence after which the other end of a move counts as lost.
    pub peer_timeout: Duration,
    /// Directory of its certificate.
    pub identity: PathBuf,
    /// The controller's URL.
    pub controller: String,
}

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The host cannot run machines.
    #[error("This host cannot run machines")]
    Host(#[source] std::io::Error),
    /// The certificate cannot be used.
    #[error("Identity cannot be used")]
    Identity(#[from] vmotion_transport::IdentityError),
    /// The certificate is somebody else's.
    #[error(
        "Certificate in {directory} is for {found}, not for host {wanted}: issue one with `vmotion pki issue host {wanted}`"
    )]
    WrongIdentity {
        /// Where it is.
        directory: PathBuf,
        /// Whose it is.
        found: Principal,
        /// Whose it should be.
        wanted: HostName,
    },
    /// The controller's URL cannot be used.
    #[error("Controller cannot be called")]
    Controller(#[from] vmotion_api::ClientError),
    /// The port is in use, or the address is not this host's.
    #[error("Cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error("Cannot use data directory {path}")]
    Data {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The service ended with an error.
    #[error("Service failed")]
    Serve(#[source] std::io::Error),
}

/// What handlers and heartbeats share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) supervisor: Supervisor,
    pub(crate) latest: Latest,
    name: HostName,
    datacenter: DatacenterName,
    url: String,
    cpu: CpuModel,
}

impl Shared {
    pub(crate) fn report(&self, machines: &[MachineStatus]) -> HostReport {
        let alive = machines.iter().filter(|machine| machine.pid.is_some());
        let used = alive.map(|machine| machine.spec.memory.bytes()).sum();
        HostReport {
            name: self.name.clone(),
            datacenter: self.datacenter.clone(),
            url: self.url.clone(),
            capacity: host::capacity(ByteSize(used)),
            cpu: self.cpu.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Runs an agent until `stop` completes. Machines run on without it. `on_ready` hears the address it listens on.
///
/// # Errors
/// [`AgentError`], before anything is touched.
pub async fn run(
    options: AgentOptions,
    on_ready: impl FnOnce(SocketAddr) + Send,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AgentError> {
    let cpu = host::cpu().map_err(|reason| AgentError::Host(std::io::Error::other(reason)))?;
    let identity = Identity::load(&options.identity)?;
    if *identity.principal() != Principal::Host(options.name.clone()) {
        let (directory, found) = (options.identity, identity.principal().clone());
        return Err(AgentError::WrongIdentity { directory, found, wanted: options.name });
    }
    let controller = ControllerClient::new(&options.controller, &identity)?;
    // Absolute, because machine processes are started with it.
    let data = std::fs::create_dir_all(options.data.join("machines")).and_then(|()| options.data.canonicalize());
    let data = data.map_err(|source| AgentError::Data { path: options.data.clone(), source })?;
    let certificate = options.identity.canonicalize();
    let certificate = certificate.map_err(|source| AgentError::Data { path: options.identity.clone(), source })?;
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.map_err(|source| AgentError::Listen { address: options.listen, source })?;
    let address = listener.local_addr().map_err(AgentError::Serve)?;
    let advertised = options.advertise.unwrap_or_else(|| address.ip());
    let shared = Arc::new(Shared {
        supervisor: Supervisor::new(&options, data, certificate, advertised),
        latest: Latest::default(),
        name: options.name,
        datacenter: options.datacenter,
        url: format!("https://{}", SocketAddr::new(advertised, address.port())),
        cpu,
    });
    let listener = TlsListener::new(listener, &identity)?;
    let beating = tokio::spawn(heartbeat::beat(Arc::clone(&shared), controller));
    let measuring = tokio::spawn(telemetry::measure(Arc::clone(&shared)));
    on_ready(address);
    let served = vmotion_api::serve(listener, http::router(shared), stop).await;
    beating.abort();
    measuring.abort();
    served.map_err(AgentError::Serve)
}
