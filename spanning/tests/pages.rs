//! Single pages: zero ones, ones that are given up, ones that move home, ones that are lost, and who cannot wait.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod common;

use common::{Cluster, Guest, Options, PAGE, Vcpu, host, relaxed, skipped, watched};
use std::sync::atomic::Ordering;
use std::time::Duration;
use vmotion_model::PageNumber;
use vmotion_spanning::directory::ShardNumber;
use vmotion_spanning::memory::{PullError, Pulled};

/// Waits until it is so.
fn eventually(what: &str, so: impl Fn() -> bool) {
    for _ in 0..5_000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what}: not within 5 s");
}

#[test]
fn zero_pages_never_travel() {
    if skipped("zero_pages_never_travel") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        for guest in &cluster.guests {
            for page in 0..1536 {
                assert_eq!(relaxed(guest.word(page, 7)), 0);
            }
        }
        // Written, and zero all the same.
        for page in 0..1536 {
            cluster.guests[page % 3].word(page as u64, 7).store(0, Ordering::Relaxed);
        }
        for page in 0..1536 {
            assert_eq!(relaxed(cluster.guests[(page + 1) % 3].word(page as u64, 7)), 0);
        }
        assert_eq!(cluster.pages_sent(), 0);
        // No message was as long as a page, so none had one.
        let (messages, bytes) = (&cluster.fabric.messages, &cluster.fabric.bytes);
        assert!(bytes.load(Ordering::Relaxed) < messages.load(Ordering::Relaxed) * 100);
        cluster.guests[2].word(3, 7).store(1, Ordering::Relaxed);
        assert_eq!(relaxed(cluster.guests[1].word(3, 7)), 1);
        assert_eq!(cluster.pages_sent(), 2, "to the home, and from there");
        cluster.assert_no_misfits();
    });
}

#[test]
fn pages_that_are_given_up_free_their_memory_and_keep_their_bytes() {
    if skipped("pages_that_are_given_up_free_their_memory_and_keep_their_bytes") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options { hosts: 2, ..Options::default() });
        for page in 0..1024 {
            cluster.guests[0].word(page, 5).store(page + 1, Ordering::Relaxed);
        }
        assert_eq!(cluster.guests[0].allocated(), 1024);
        cluster.evict_all(0);
        eventually("all is given up", || cluster.stats(0).counts.evicted == 1024 && cluster.guests[0].allocated() == 0);
        for page in 0..1024 {
            assert_eq!(relaxed(cluster.guests[usize::from(page % 3 == 0)].word(page, 5)), page + 1);
        }
        cluster.assert_no_misfits();
    });
}

#[test]
fn a_shard_moves_home_with_its_pages() {
    if skipped("a_shard_moves_home_with_its_pages") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        for page in 0..512 {
            cluster.guests[page % 3].word(page as u64, 5).store(page as u64 + 1, Ordering::Relaxed);
        }
        for page in 0..256 {
            assert_eq!(relaxed(cluster.guests[0].word(page, 5)), page + 1);
        }
        assert!(cluster.controls[0].relocate(ShardNumber(0), host(0)).is_err(), "to itself");
        assert!(cluster.controls[1].relocate(ShardNumber(0), host(2)).is_err(), "it is not there");
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            cluster.controls[from].relocate(ShardNumber(0), host(to)).unwrap();
            eventually("the shard has moved", || {
                // It answers that it has nothing to move once it is gone, and moves it while it is here.
                cluster.store.route(0).home == host(to)
            });
            for page in 0..512 {
                let (reader, writer) = (&cluster.guests[from], &cluster.guests[to]);
                let before = relaxed(reader.word(page, 5));
                assert_eq!(writer.word(page, 5).fetch_add(1, Ordering::SeqCst), before);
            }
        }
        assert_eq!(cluster.store.route(0).epoch.0, 4);
        for page in 0..512 {
            assert_eq!(relaxed(cluster.guests[1].word(page, 5)), page + 4);
        }
        cluster.assert_no_misfits();
    });
}

#[test]
fn a_shard_that_nobody_claims_is_taken_back() {
    if skipped("a_shard_that_nobody_claims_is_taken_back") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        cluster.guests[2].word(1, 0).store(1, Ordering::Relaxed);
        cluster.store.deaf.store(true, Ordering::Release);
        cluster.controls[0].relocate(ShardNumber(0), host(1)).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| relaxed(cluster.guests[0].word(1, 0)));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!reader.is_finished(), "both homes wait");
            cluster.store.deaf.store(false, Ordering::Release);
            cluster.controls[0].take_back(ShardNumber(0)).unwrap();
            assert_eq!(reader.join().unwrap(), 1);
        });
        assert_eq!((cluster.store.route(0).home, cluster.store.route(0).epoch.0), (host(0), 2));
        for guest in &cluster.guests {
            assert_eq!(guest.word(2, 0).fetch_add(1, Ordering::SeqCst) / 3, 0);
        }
        // The one that did not claim it hears of the next move as well.
        cluster.controls[0].relocate(ShardNumber(0), host(1)).unwrap();
        eventually("the shard has moved", || cluster.store.route(0).home == host(1));
        assert!(cluster.guests.iter().all(|guest| relaxed(guest.word(2, 0)) == 3));
        cluster.assert_no_misfits();
    });
}

/// Rule 7: without hold windows two hosts could take the halves of it from each other for ever.
#[test]
fn hosts_that_need_two_pages_at_once_get_on() {
    if skipped("hosts_that_need_two_pages_at_once_get_on") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        let writer = |number: usize| {
            let write = move |guest: &common::Guest| {
                for value in 0..1_000_000 {
                    // One of the two pages has its home elsewhere than the other.
                    guest.write_across(511, value);
                }
            };
            (number, Box::new(write) as Vcpu<'static, ()>)
        };
        cluster.run((0..3).map(writer).collect());
        cluster.assert_no_misfits();
    });
}

#[test]
fn pages_of_a_fenced_host_are_lost_and_said_to_be() {
    if skipped("pages_of_a_fenced_host_are_lost_and_said_to_be") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        // Its home is host 0; host 2 writes one page, and reads and is read on another.
        cluster.guests[2].word(1, 0).store(1, Ordering::Relaxed);
        cluster.guests[1].word(2, 0).store(2, Ordering::Relaxed);
        assert_eq!(relaxed(cluster.guests[2].word(2, 0)), 2);
        assert_eq!(cluster.controls[2].fence(host(2)).unwrap(), []);
        assert_eq!(cluster.controls[0].fence(host(2)).unwrap(), [PageNumber(1)]);
        assert_eq!(cluster.controls[1].fence(host(2)).unwrap(), []);
        assert_eq!(cluster.guests[1].touch_in_kernel(1), Some(rustix::io::Errno::FAULT));
        assert_eq!(cluster.guests[0].touch_in_kernel(1), Some(rustix::io::Errno::FAULT));
        assert_eq!(relaxed(cluster.guests[0].word(2, 0)), 2);
        cluster.guests[0].word(2, 0).store(3, Ordering::Relaxed);
        assert_eq!(relaxed(cluster.guests[1].word(2, 0)), 3);
    });
}

#[test]
fn faults_of_the_kernel_are_served() {
    if skipped("faults_of_the_kernel_are_served") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        cluster.guests[2].word(700, 0).store(9, Ordering::Relaxed);
        for guest in &cluster.guests {
            assert_eq!(guest.touch_in_kernel(700), None);
        }
        assert_eq!(cluster.pages_sent(), 2, "from the writer to its home, and to the third host");
        assert_eq!(PAGE, 4096);
    });
}

#[test]
fn what_is_asked_while_there_is_no_connection_is_answered_when_there_is() {
    if skipped("what_is_asked_while_there_is_no_connection_is_answered_when_there_is") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options { hosts: 2, ..Options::default() });
        cluster.guests[1].word(0, 0).store(5, Ordering::Relaxed);
        cluster.fabric.cut(0, 1);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| relaxed(cluster.guests[0].word(0, 0)));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!reader.is_finished());
            // What needs nobody else goes on.
            cluster.guests[0].word(1, 0).store(1, Ordering::Relaxed);
            cluster.fabric.connect(0, 1);
            assert_eq!(reader.join().unwrap(), 5);
        });
        cluster.assert_no_misfits();
    });
}

#[test]
fn a_node_that_is_stopped_says_so() {
    if skipped("a_node_that_is_stopped_says_so") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options { hosts: 2, ..Options::default() });
        let control = cluster.controls[1].clone();
        control.stop().unwrap();
        assert!(control.statistics().is_ok());
        drop(cluster);
        assert!(control.statistics().is_err());
        assert!(control.failure().is_none());
    });
}

#[test]
fn pages_follow_their_home() {
    if skipped("pages_follow_their_home") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        for page in 0..300 {
            cluster.guests[1].word(page, 5).store(page + 1, Ordering::Relaxed);
        }
        for page in 200..300 {
            assert_eq!(relaxed(cluster.guests[2].word(page, 5)), page + 1);
        }
        let pull = |shard, from| cluster.controls[0].pull([ShardNumber(shard)], host(from), Duration::from_secs(5));
        assert_eq!(pull(0, 2), Ok(Pulled::default()), "it has none for itself");
        assert_eq!(pull(0, 1), Ok(Pulled { pages: 200, busy: 0 }));
        let before = [0, 1, 2].map(|host| cluster.stats(host).counts.touches);
        for page in 0..200 {
            assert_eq!(relaxed(cluster.guests[0].word(page, 5)), page + 1);
            cluster.guests[0].word(page, 5).store(page + 2, Ordering::Relaxed);
        }
        for page in 200..300 {
            assert_eq!(relaxed(cluster.guests[1].word(page, 5)), page + 1, "who reads goes on");
        }
        assert_eq!([0, 1, 2].map(|host| cluster.stats(host).counts.touches), before, "all of it was there");
        assert_eq!(pull(0, 1), Ok(Pulled::default()), "again");
        assert_eq!(pull(1, 2), Err(PullError::Elsewhere(ShardNumber(1))));
        assert_eq!(pull(0, 0), Err(PullError::From(host(0))));
        assert_eq!(pull(0, 7), Err(PullError::From(host(7))));
        cluster.assert_no_misfits();
    });
}

#[test]
fn pages_that_are_fetched_are_those_that_others_write() {
    if skipped("pages_that_are_fetched_are_those_that_others_write") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options { hosts: 2, jumble: Some(5), ..Options::default() });
        let add = |guest: &Guest| {
            for number in 0..20_000_u64 {
                guest.word(number * 7 % 512, 0).fetch_add(1, Ordering::SeqCst);
            }
        };
        let pull = |_: &Guest| {
            for _ in 0..20 {
                let pulled = cluster.controls[0].pull([ShardNumber(0)], host(1), Duration::from_secs(5));
                assert!(pulled.is_ok(), "{pulled:?}");
            }
        };
        cluster.run(vec![
            (0, Box::new(add) as Vcpu<'_, ()>),
            (1, Box::new(add) as Vcpu<'_, ()>),
            (0, Box::new(pull) as Vcpu<'_, ()>),
        ]);
        let sum: u64 = (0..512).map(|page| relaxed(cluster.guests[0].word(page, 0))).sum();
        assert_eq!(sum, 40_000);
        cluster.assert_no_misfits();
    });
}

#[test]
fn bytes_that_somebody_wrote_past_the_pager_are_found_and_stop_the_machine() {
    if skipped("bytes_that_somebody_wrote_past_the_pager_are_found_and_stop_the_machine") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options { audit: true, ..Options::default() });
        for page in 0..100 {
            cluster.guests[1].word(page, 5).store(page + 1, Ordering::Relaxed);
            assert_eq!(relaxed(cluster.guests[2].word(page, 5)), page + 1);
            // From reader to writer, and taken from readers.
            cluster.guests[usize::try_from(page % 3).unwrap()].word(page, 6).store(1, Ordering::Relaxed);
        }
        for page in 0..100 {
            assert_eq!(relaxed(cluster.guests[2].word(page, 5)), page + 1);
        }
        let audited = |host| cluster.stats(host).counts.audited;
        eventually("every copy is compared with its home's, and when it is lost", || {
            audited(0) >= 150 && audited(1) > 30 && audited(2) > 60
        });
        cluster.assert_no_misfits();
        cluster.guests[2].corrupt(42);
        cluster.evict_all(2);
        eventually("the auditor stops the machine", || cluster.controls[2].failure().is_some());
        let failure = cluster.controls[2].failure().unwrap().to_string();
        assert!(failure.starts_with("Bytes of page 0x2a changed that nobody may write: of version "), "{failure}");
        assert!(cluster.controls[0].failure().is_none() && cluster.controls[1].failure().is_none());
    });
}
