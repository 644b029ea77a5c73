//! What a monitoring system reads.

use crate::world::{World, command};

async fn read(world: &World, uri: &str) -> (u16, String) {
    let identity = world.identity(uri);
    let expected = vmotion_transport::ExpectedPeer::AnyController;
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(identity.client_config(expected).unwrap())
        .build()
        .unwrap();
    let answer = http.get(format!("{}/metrics", world.url())).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_reads_what_there_is_and_what_happened() {
    let world = World::start().await;
    world.create("vm1", "h1").await;
    world.operator.start_move(&command("nobody", "h2"), "k1").await.unwrap_err();
    let (status, text) = read(&world, "viewer/prometheus").await;
    assert_eq!(status, 200, "{text}");
    for line in [
        "vmotion_build_info{version=\"0.1.0\"} 1",
        "vmotion_controller_leads 1",
        "vmotion_host_up{host=\"h1\",datacenter=\"dc1\"} 1.0",
        "vmotion_machines{state=\"running\"} 1.0",
        "vmotion_machines{state=\"failed\"} 0.0",
        "vmotion_moves_running 0",
        "vmotion_http_requests_total{method=\"POST\",route=\"/v1/moves\",status=\"404\"} 1",
        "vmotion_host_memory_used_bytes{host=\"h1\",datacenter=\"dc1\"}",
        "vmotion_store_commits_total{outcome=\"committed\"}",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in\n{text}");
    }
    assert_eq!(text.matches("# EOF").count(), 1);
    assert!(text.ends_with("# EOF\n"));
    // A path that nobody has makes no series of its own.
    let _ = world.operator.machine(&"nobody".parse().unwrap()).await;
    let (_, text) = read(&world, "viewer/prometheus").await;
    assert!(!text.contains("nobody") && text.contains("route=\"/v1/machines/{name}\""), "{text}");
    assert_eq!(read(&world, "host/h1").await.0, 403);
}
