//! What the operator types, and what comes back.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod harness;

use harness::{PROGRAM, World, scenario};
use std::{process::Output, time::Duration};
use vmotion_model::ByteSize;

fn vmotion(world: &World, arguments: &[&str]) -> Output {
    std::process::Command::new(PROGRAM)
        .args(arguments)
        .env("VMOTION_HOME", world.path("home"))
        .env("VMOTION_CONTROLLER", world.client.url())
        .env("VMOTION_IDENTITY", world.path("operator-identity"))
        .output()
        .unwrap()
}

fn refused(world: &World, arguments: &[&str], exit: i32, words: &[&str]) {
    let output = vmotion(world, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(exit), "vmotion {arguments:?}: {error}");
    for word in words {
        assert!(error.contains(word), "vmotion {arguments:?} should say {word:?}: {error}");
    }
}

fn done(world: &World, arguments: &[&str]) -> String {
    let output = vmotion(world, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "vmotion {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bad_input_is_refused_by_name_before_anything_is_touched() {
    scenario("bad_input_is_refused_by_name_before_anything_is_touched", async {
        let world = World::start(Duration::from_secs(10), None).await;
        let kernel = world.path("probe.elf").display().to_string();
        world.create(world.spec("vm1", ByteSize::mib(64), "ws=8M rate=0"), "h1").await;

        refused(&world, &["show", "nope"], 3, &["nope"]);
        refused(&world, &["move", "vm1", "--to", "nowhere"], 3, &["nowhere", "h1 (dc1)", "h2 (dc2)"]);
        refused(&world, &["move", "vm1", "--to", "h1"], 4, &["on h1 already"]);
        refused(
            &world,
            &["create", "vm2", "--kernel", "/etc/passwd", "--on", "h1"],
            5,
            &["/etc/passwd", "neither an ELF"],
        );
        refused(&world, &["create", "vm2", "--kernel", "/missing", "--on", "h1"], 5, &["/missing", "No such file"]);
        refused(&world, &["create", "vm2", "--kernel", &kernel, "--memory", "8M"], 2, &["memory 8 MiB", "16M to 1T"]);
        refused(&world, &["create", "vm2", "--kernel", &kernel, "--memory", "1000G"], 5, &["needs 1000 GiB", "free"]);
        refused(&world, &["create", "vm2", "--kernel", &kernel, "--cpus", "65"], 2, &["cpus 65", "1 to 64"]);
        refused(
            &world,
            &["create", "vm2", "--kernel", &kernel, "--disk", "/missing", "--on", "h1"],
            5,
            &["Disk \"/missing\""],
        );
        refused(&world, &["create", "vm1", "--kernel", &kernel], 4, &["vm1 exists already"]);
        refused(&world, &["create", "../x", "--kernel", &kernel], 2, &["machine name \"../x\""]);
        refused(&world, &["rm", "vm1"], 4, &["running", "vmotion stop vm1"]);
        refused(&world, &["cancel", "m-000099"], 3, &["m-000099"]);
        refused(&world, &["--controller", "https://127.0.0.1:1", "ls"], 7, &["does not answer"]);
        let host = world.path("h1-identity").display().to_string();
        refused(&world, &["--identity", &host, "ls"], 6, &["spiffe://vmotion/host/h1"]);
        let port = format!("127.0.0.1:{}", world.controller_port());
        let data = world.path("c2").display().to_string();
        let identity = world.path("controller-identity").display().to_string();
        refused(
            &world,
            &["controller", "--data", &data, "--listen", &port, "--identity", &identity],
            1,
            &["Cannot listen", "in use"],
        );
        // Nothing of all that left anything behind.
        let machines: serde_json::Value = serde_json::from_str(&done(&world, &["ls", "--json"])).unwrap();
        assert_eq!(machines.as_array().unwrap().len(), 1);
        assert_eq!(machines[0]["name"], "vm1");
        world.stop().await;
    });
}

#[test]
fn a_machine_lives_its_life_by_the_command_line() {
    scenario("a_machine_lives_its_life_by_the_command_line", async {
        let world = World::start(Duration::from_secs(10), None).await;
        let kernel = world.path("probe.elf").display().to_string();
        let snapshot = world.path("snapshot").display().to_string();
        done(
            &world,
            &[
                "create",
                "vm1",
                "--kernel",
                &kernel,
                "--memory",
                "64M",
                "--cpus",
                "2",
                "--on",
                "h1",
                "--cmdline",
                "ws=8M rate=8M",
            ],
        );
        world.wait_for_console(&"vm1".parse().unwrap(), "READY").await;
        let moved: serde_json::Value =
            serde_json::from_str(&done(&world, &["move", "vm1", "--to", "dc2", "--json"])).unwrap();
        assert_eq!(moved["outcome"]["result"], "moved");
        assert!(moved["summary"]["downtime"]["source_ms"].as_f64().unwrap() > 0.0);
        let shown: serde_json::Value = serde_json::from_str(&done(&world, &["show", "vm1", "--json"])).unwrap();
        assert_eq!((shown["host"].as_str(), shown["epoch"].as_u64()), (Some("h2"), Some(2)));
        assert!(done(&world, &["moves"]).contains("moved"));
        assert!(done(&world, &["host", "ls"]).contains("dc2"));
        assert!(done(&world, &["move", "vm1", "--to", "dc1", "--dry-run"]).contains("It would go to h1"));

        done(&world, &["snapshot", "vm1", &snapshot]);
        done(&world, &["stop", "vm1"]);
        assert!(done(&world, &["show", "vm1"]).contains("stopped"));
        done(&world, &["rm", "vm1"]);
        done(&world, &["create", "vm1", "--from", &snapshot, "--on", "h1"]);
        let log = done(&world, &["console", "vm1", "--no-follow"]);
        assert!(!log.contains("READY"), "a restored machine does not boot again: {log}");
        done(&world, &["stop", "vm1"]);
        done(&world, &["rm", "vm1"]);
        assert!(done(&world, &["completions", "bash"]).contains("vmotion"));
        world.stop().await;
    });
}

#[test]
fn a_host_that_is_gone_is_shown_as_gone_and_its_machines_as_unknown() {
    scenario("a_host_that_is_gone_is_shown_as_gone_and_its_machines_as_unknown", async {
        let mut world = World::start(Duration::from_secs(10), None).await;
        world.create(world.spec("vm1", ByteSize::mib(64), "ws=8M rate=0"), "h1").await;
        world.kill_service("h1").await;
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !done(&world, &["ls"]).contains("unknown") {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(done(&world, &["host", "ls"]).contains("gone"));
        // The machine never noticed; its agent finds it again.
        world.start_service("h1");
        world.wait_until_up().await;
        let copies = world.copies(&"vm1".parse().unwrap()).await;
        assert_eq!(copies.len(), 1, "{copies:?}");
        world.stop().await;
    });
}
