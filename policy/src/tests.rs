use super::*;
use proptest::prelude::*;
use vmotion_model::{HostCapacity, HostState};

fn host(name: &str) -> Host {
    Host {
        name: name.parse().unwrap(),
        datacenter: "dc1".parse().unwrap(),
        url: format!("https://{name}:7000"),
        capacity: HostCapacity { cpus: 8, memory: ByteSize::gib(4), memory_used: ByteSize(0) },
        cpu: cpu("GenuineIntel", &["avx2", "sse2"]),
        cordoned: false,
        draining: false,
        state: HostState::Up,
        seen_ms_ago: 100,
    }
}

fn cpu(vendor: &str, features: &[&str]) -> CpuModel {
    let features = features.iter().map(|&feature| feature.to_owned()).collect();
    CpuModel { vendor: vendor.to_owned(), features, ..CpuModel::default() }
}

fn request() -> PlacementRequest {
    PlacementRequest { memory: ByteSize::gib(1), cpus: 2, ..PlacementRequest::default() }
}

fn moving_from(name: &str, cpu: CpuModel) -> PlacementRequest {
    PlacementRequest { current: Some(Current { host: name.parse().unwrap(), cpu }), ..request() }
}

#[track_caller]
fn assert_rejected(request: &PlacementRequest, host: Host, reason: &str) {
    let placement = place(request, &[host]);
    assert_eq!(placement.chosen, None);
    assert_eq!(placement.judgements[0].verdict, Verdict::Rejected { reasons: vec![reason.to_owned()] });
}

#[test]
fn host_without_memory_is_rejected_with_numbers() {
    let mut full = host("h1");
    full.capacity.memory_used = ByteSize::mib(3584);
    assert_rejected(&request(), full, "needs 1 GiB, 512 MiB of 4 GiB free");
}

#[test]
fn host_that_reports_more_used_than_it_has_is_full() {
    let mut full = host("h1");
    full.capacity.memory_used = ByteSize::gib(9);
    assert_rejected(&request(), full, "needs 1 GiB, 0 B of 4 GiB free");
}

#[test]
fn machine_that_fits_exactly_is_accepted() {
    let mut tight = host("h1");
    tight.capacity.memory_used = ByteSize::gib(3);
    assert_eq!(place(&request(), &[tight.clone()]).chosen, Some(tight.name));
}

#[test]
fn gone_and_cordoned_hosts_are_rejected_for_both_reasons() {
    let out = Host { state: HostState::Gone, seen_ms_ago: 7_400, cordoned: true, ..host("h1") };
    let Verdict::Rejected { reasons } = place(&request(), &[out]).judgements.remove(0).verdict else {
        panic!("accepted");
    };
    assert_eq!(reasons, ["is gone, last heard 7 s ago", "is cordoned"]);
}

#[test]
fn host_elsewhere_is_rejected_by_name_and_by_datacenter() {
    let wanted = |wanted| PlacementRequest { wanted, ..request() };
    let by_host = wanted(Wanted::Host("h2".parse().unwrap()));
    assert_rejected(&by_host, host("h1"), "is not h2, which was asked for");
    let by_datacenter = wanted(Wanted::Datacenter("dc2".parse().unwrap()));
    assert_rejected(&by_datacenter, host("h1"), "is in dc1, not in dc2, which was asked for");
}

#[test]
fn current_host_is_never_a_target() {
    let request = moving_from("h1", host("h1").cpu);
    assert_rejected(&request, host("h1"), "is where the machine is now");
}

#[test]
fn other_vendor_is_rejected_without_a_list_of_features() {
    let request = moving_from("h0", cpu("AuthenticAMD", &["svm"]));
    assert_rejected(&request, host("h1"), "has a CPU of GenuineIntel, h0 has one of AuthenticAMD");
}

#[test]
fn missing_features_are_named() {
    let one = moving_from("h0", cpu("GenuineIntel", &["avx2", "avx512f"]));
    assert_rejected(&one, host("h1"), "lacks 1 CPU feature of h0: avx512f");
    let many = moving_from("h0", cpu("GenuineIntel", &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]));
    assert_rejected(&many, host("h1"), "lacks 10 CPU features of h0: a, b, c, d, e, f, g, h and 2 more");
}

#[test]
fn absurd_vcpu_count_is_rejected_and_overcommit_is_not() {
    let mut small = host("h1");
    small.capacity.cpus = 1;
    let many = PlacementRequest { cpus: 33, ..request() };
    assert_rejected(&many, small.clone(), "needs 33 vCPUs, 1 threads take 32 at most");
    assert!(place(&PlacementRequest { cpus: 32, ..request() }, &[small]).chosen.is_some());
}

#[test]
fn score_is_explained_with_numbers() {
    let load = BTreeMap::from([("h1".parse().unwrap(), HostLoad { machines: 1, vcpus: 2 })]);
    let placement = place(&PlacementRequest { load, ..request() }, &[host("h1")]);
    let Verdict::Fits { score, reasons } = &placement.judgements[0].verdict else { panic!("rejected") };
    assert_eq!(
        *reasons,
        [
            "3 GiB of 4 GiB stays free (38 of 50 points)",
            "4 vCPUs on 8 threads (30 of 30 points)",
            "1 other machines (10 of 20 points)",
        ]
    );
    assert!((score - 77.5).abs() < 1e-9, "{score}");
}

#[test]
fn emptier_host_wins_and_equal_hosts_are_decided_by_name() {
    let mut used = host("h1");
    used.capacity.memory_used = ByteSize::gib(2);
    assert_eq!(place(&request(), &[used, host("h3"), host("h2")]).chosen, Some("h2".parse().unwrap()));
}

#[test]
fn nothing_fits_is_explained_in_one_line() {
    let cordoned = Host { cordoned: true, ..host("h1") };
    assert_eq!(explain(&place(&request(), &[cordoned])), "h1 is cordoned");
}

fn any_host() -> impl Strategy<Value = Host> {
    let flags = (any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    (0u32..20, 1u32..64, 0u64..8, 0u64..8, flags).prop_map(|(n, cpus, memory, used, (dc2, gone, cordoned))| Host {
        datacenter: if dc2 { "dc2" } else { "dc1" }.parse().unwrap(),
        capacity: HostCapacity { cpus, memory: ByteSize::gib(memory), memory_used: ByteSize::gib(used) },
        state: if gone { HostState::Gone } else { HostState::Up },
        cordoned,
        ..host(&format!("h{n}"))
    })
}

fn any_hosts() -> impl Strategy<Value = Vec<Host>> {
    prop::collection::vec(any_host(), 0..12).prop_map(|mut hosts| {
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        hosts.dedup_by(|a, b| a.name == b.name);
        hosts
    })
}

fn any_request() -> impl Strategy<Value = PlacementRequest> {
    let wanted = prop_oneof![
        Just(Wanted::Anywhere),
        Just(Wanted::Datacenter("dc2".parse().unwrap())),
        (0u32..20).prop_map(|n| Wanted::Host(format!("h{n}").parse().unwrap())),
    ];
    let load = prop::collection::btree_map(
        (0u32..20).prop_map(|n| format!("h{n}").parse().unwrap()),
        (0u32..9, 0u32..99).prop_map(|(machines, vcpus)| HostLoad { machines, vcpus }),
        0..8,
    );
    (0u64..6, 1u32..64, wanted, prop::option::of(0u32..20), load).prop_map(|(gib, cpus, wanted, current, load)| {
        let current = current.map(|n| Current { host: format!("h{n}").parse().unwrap(), cpu: host("h1").cpu });
        PlacementRequest { memory: ByteSize::gib(gib), cpus, wanted, current, load }
    })
}

proptest! {
    #[test]
    fn chosen_host_fits_and_has_the_highest_score(request in any_request(), hosts in any_hosts()) {
        let placement = place(&request, &hosts);
        prop_assert_eq!(placement.judgements.len(), hosts.len());
        let scores: Vec<(f64, &HostName)> = placement.judgements.iter().filter_map(|judgement| match &judgement.verdict {
            Verdict::Fits { score, .. } => Some((*score, &judgement.host)),
            Verdict::Rejected { .. } => None,
        }).collect();
        prop_assert!(scores.iter().all(|(score, _)| (0.0..=100.0).contains(score)));
        prop_assert_eq!(placement.chosen.is_none(), scores.is_empty());
        if let Some(chosen) = &placement.chosen {
            let (best, _) = scores.iter().find(|(_, host)| *host == chosen).expect("a rejected host was chosen");
            prop_assert!(scores.iter().all(|(score, _)| score <= best));
        }
    }

    #[test]
    fn chosen_host_is_up_uncordoned_elsewhere_and_has_room(request in any_request(), hosts in any_hosts()) {
        let placement = place(&request, &hosts);
        let Some(chosen) = placement.chosen else { return Ok(()) };
        let host = hosts.iter().find(|host| host.name == chosen).unwrap();
        prop_assert!(!host.cordoned && host.state == HostState::Up);
        prop_assert!(host.capacity.memory_used.0 + request.memory.0 <= host.capacity.memory.0);
        prop_assert!(request.current.is_none_or(|current| current.host != chosen));
    }

    #[test]
    fn answer_does_not_depend_on_the_order_of_hosts(
        request in any_request(),
        (hosts, shuffled) in any_hosts().prop_flat_map(|hosts| (Just(hosts.clone()), Just(hosts).prop_shuffle())),
    ) {
        prop_assert_eq!(place(&request, &hosts), place(&request, &shuffled));
    }
}
