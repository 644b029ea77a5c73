//! Hosts that come, go, and come back; and hosts that do not belong.

use super::*;

#[test]
fn a_host_that_is_taken_away_is_lost_and_not_called_again() {
    let world = world(2);
    let (first, second) = pair(&world);
    first.mesh.remove_peer(Peer(1));
    eventually("both hear it", || first.ways(1) == [true, false] && second.ways(0) == [true, false]);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(first.ways(1), [true, false]);
    assert!(!first.mesh.figures().peers.contains_key(&Peer(1)));
    first.knows(1, second.address);
    eventually("and is there again when it is named again", || first.is_connected(1) && second.is_connected(0));
}

#[test]
fn a_host_taken_away_by_the_one_that_is_called_is_turned_away() {
    let world = world(2);
    let (first, second) = pair(&world);
    second.mesh.remove_peer(Peer(0));
    eventually("both hear it", || first.ways(1) == [true, false] && second.ways(0) == [true, false]);
    // Without any host it knows it does not even answer.
    eventually("it is refused", || first.trouble(1).contains("Cannot connect"));
    second.knows(2, first.address);
    eventually("and hears why", || first.trouble(1).contains("host 0 is not known here"));
}

#[test]
fn a_host_that_was_started_anew_is_refused_until_it_is_named_anew() {
    let world = world(2);
    let (first, second) = pair(&world);
    first.mesh.end();
    let again = node(MeshOptions { incarnation: 101, ..options(&world, 0) });
    again.knows(1, second.address);
    let why = "incarnation: host 0 has 101, this end knows it by 100";
    eventually("it hears why", || again.trouble(1).contains(why));
    assert!(second.mesh.figures().refused_why.unwrap().contains(why));
    assert!(again.ways(1).is_empty());
    assert_eq!(second.ways(0), [true, false]);
    second.knows(0, again.address);
    eventually("connected", || again.is_connected(1) && second.is_connected(0));
}

#[test]
fn a_called_host_that_was_started_anew_is_not_talked_to() {
    let world = world(2);
    let (first, second) = pair(&world);
    second.mesh.end();
    let again = node(MeshOptions { incarnation: 101, ..options(&world, 1) });
    again.knows(0, first.address);
    first.mesh.move_peer(Peer(1), again.address);
    eventually("it is noticed", || first.trouble(1).contains("incarnation: host 1 has 101, this end knows it by 100"));
    assert_eq!(first.ways(1), [true, false]);
    again.hears(|heard| heard.iter().any(|heard| matches!(heard, Heard::Lost(0, why) if why.contains("incarnation"))));
}

#[test]
fn a_host_that_was_started_anew_as_the_same_comes_back() {
    let world = world(2);
    let (first, second) = pair(&world);
    drop(second.mesh);
    eventually("it is gone", || first.ways(1) == [true, false]);
    let again = node(options(&world, 1));
    again.knows(0, first.address);
    first.mesh.move_peer(Peer(1), again.address);
    eventually("connected", || first.is_connected(1) && again.is_connected(0));
}

/// What the caller hears, and what the called one says, when `change` is made to the caller.
fn refused(change: impl Fn(&World, &mut MeshOptions)) -> (String, String) {
    let world = world(3);
    let second = node(options(&world, 1));
    let mut wrong = options(&world, 0);
    change(&world, &mut wrong);
    let first = node(wrong);
    // Who knows nobody refuses everybody, without a word about what does not fit.
    second.knows(0, first.address);
    first.knows(1, second.address);
    eventually("it is refused", || second.mesh.figures().refused_why.is_some() && !first.trouble(1).is_empty());
    assert_eq!((first.ways(1), second.ways(0)), (vec![], vec![]));
    (first.trouble(1), second.mesh.figures().refused_why.unwrap())
}

#[test]
fn what_does_not_fit_is_named_at_both_ends() {
    type Change = fn(&World, &mut MeshOptions);
    let cases: [(Change, &str); 3] = [
        (|_, options| options.ticket = MeshTicket::random(), "ticket: it is not that of this machine's mesh"),
        (|_, options| options.machine = "vm2".parse().unwrap(), "machine: the peer has vm2, this end vm1"),
        (|world, options| options.identity = Arc::clone(&world.identities[2]), "certificate: spiffe://vmotion/host/h2"),
    ];
    for (change, why) in cases {
        let (first, second) = refused(change);
        assert!(first.contains(why), "{first}");
        assert!(second.contains(why), "{second}");
    }
}

#[test]
fn a_called_host_with_the_wrong_certificate_is_not_talked_to() {
    let world = world(3);
    let second = node(MeshOptions { identity: Arc::clone(&world.identities[2]), ..options(&world, 1) });
    let first = node(options(&world, 0));
    first.knows(1, second.address);
    second.knows(0, first.address);
    eventually("it is noticed", || first.trouble(1).contains("spiffe://vmotion/host/h2"));
    assert_eq!((first.ways(1), second.ways(0)), (vec![], vec![]));
}
