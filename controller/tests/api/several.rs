//! Several controllers on one cluster, as clients see them.

use crate::{
    agent::FakeAgent,
    etcd::{self, Cluster},
    world::{create_request, issue, until},
};
use serde_json::Value;
use std::sync::Arc;
use tokio::{sync::oneshot, task::JoinHandle};
use vmotion_api::{ControllerClient, HttpClient};
use vmotion_controller::{ControllerError, ControllerOptions, StoreOptions, store::etcd::EtcdOptions};
use vmotion_model::MachineState;
use vmotion_transport::{ExpectedPeer, Identity, pki::Authority};

struct Running {
    url: String,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ControllerError>>,
}

async fn start(name: &str, cluster: &Cluster, identity: &Arc<Identity>) -> Running {
    let store = StoreOptions::Etcd(EtcdOptions::new(cluster.urls()));
    let mut options = ControllerOptions::new(store, "127.0.0.1:0".parse().unwrap(), Arc::clone(identity));
    options.name = name.to_owned();
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, address) = oneshot::channel();
    let run =
        vmotion_controller::run(
            options,
            move |address| ready.send(address).unwrap(),
            async move { drop(stopped.await) },
        );
    let ended = tokio::spawn(run);
    Running { url: format!("https://{}", address.await.unwrap()), stop, ended }
}

/// What one of them says of itself.
async fn health(url: &str, identity: &Identity) -> Value {
    let client = HttpClient::new("Controller", url, identity, ExpectedPeer::AnyController).unwrap();
    client.get("/v1/health").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_asked_the_leader_answers_and_when_it_stops_the_next_goes_on() {
    if etcd::is_missing("whoever_is_asked_the_leader_answers_and_when_it_stops_the_next_goes_on") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(&directory.path().join("ca")).unwrap();
    let identity = |uri: &str| issue(&authority, directory.path().join(uri.replace('/', "-")), uri);
    let cluster = Cluster::start(&[]).await;
    let (of_controllers, operator, host) = (identity("controller/c"), identity("operator/alice"), identity("host/h1"));
    let mut running = vec![start("c1", &cluster, &of_controllers).await, start("c2", &cluster, &of_controllers).await];
    let urls = format!("{},{}", running[0].url, running[1].url);
    let mut agent = FakeAgent::start("h1", "dc1", Arc::clone(&host)).await;
    agent.beat(ControllerClient::new(&urls, &host).unwrap()).await;

    let client = ControllerClient::new(&urls, &operator).unwrap();
    let machine = client.create(&create_request("vm1", Some("h1")), "create-vm1").await.unwrap();
    until("both know who leads", async || {
        let (first, second) = (health(&running[0].url, &operator).await, health(&running[1].url, &operator).await);
        first["leader"] == second["leader"] && first["leader"].is_object()
    })
    .await;
    let (first, second) = (health(&running[0].url, &operator).await, health(&running[1].url, &operator).await);
    assert_eq!([&first["leads"], &second["leads"]].iter().filter(|leads| ***leads == true).count(), 1);
    // A client that knows one of them only is sent to whoever leads.
    for controller in &running {
        let client = ControllerClient::new(&controller.url, &operator).unwrap();
        assert_eq!(client.machine(&machine.name).await.unwrap().host, machine.host);
    }

    let leads = usize::from(second["leads"] == true);
    let Running { stop, ended, .. } = running.remove(leads);
    let _ = stop.send(());
    ended.await.unwrap().unwrap();
    until("the other leads", async || health(&running[0].url, &operator).await["leads"] == true).await;
    let view = client.machine(&machine.name).await.unwrap();
    assert_eq!((view.host, view.epoch), (machine.host.clone(), machine.epoch));
    until("its host is heard by the other", async || {
        client.machine(&machine.name).await.unwrap().state == MachineState::Running
    })
    .await;
    // The same key is the same request, whoever hears it.
    let again = client.create(&create_request("vm1", Some("h1")), "create-vm1").await.unwrap();
    assert_eq!(again.name, machine.name);
    let Running { stop, ended, .. } = running.remove(0);
    let _ = stop.send(());
    ended.await.unwrap().unwrap();
}
