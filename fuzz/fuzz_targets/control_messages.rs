//! What a peer says on the control stream before it is trusted: decoded and negotiated, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use vmotion_model::{CpuModel, MemoryLayout, MoveId};
use vmotion_transport::session::{Hello, TargetFacts, Welcome, WireError};

fuzz_target!(|data: &[u8]| {
    let _ = postcard::from_bytes::<Result<Welcome, WireError>>(data);
    let Ok(hello) = postcard::from_bytes::<Hello>(data) else { return };
    let facts = TargetFacts {
        features: BTreeSet::new(),
        layout: MemoryLayout::for_ram(1 << 30).unwrap(),
        cpu: CpuModel::default(),
        cpus: 2,
        state_version_max: 1,
        machine: "vm1".parse().unwrap(),
        move_id: MoveId::numbered(1),
        flows_max: 8,
    };
    if let Ok(welcome) = facts.negotiate(&hello) {
        assert!(welcome.flows >= 1 && welcome.flows <= 8);
        assert_eq!(hello.layout, facts.layout);
    }
});
