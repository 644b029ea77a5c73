use super::*;
use crate::store::{
    Change, Compare, Outcome, SharedStore, Transaction,
    cluster::{self, Cluster},
    etcd::{EtcdOptions, EtcdStore},
};
use std::{sync::Arc, time::Instant};
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);
const ID: LeaseId = LeaseId(7);

fn leader(name: &str) -> Leader {
    Leader { name: name.to_owned(), url: format!("https://{name}:1") }
}

fn seat(name: &str, lease: u64, token: u64) -> Seat {
    Seat { leader: leader(name), lease: LeaseId(lease), token: Revision(token) }
}

fn campaigning(asked: Moment) -> State {
    State::Campaigning { lease: Lease::counted_from(ID, asked) }
}

fn leading(asked: Moment) -> State {
    State::Leading { lease: Lease::counted_from(ID, asked), token: Revision(3) }
}

#[test]
fn way_to_the_helm_is_look_lease_key() {
    let state = State::new();
    assert_eq!(state.question(), Question::Seat);
    let (state, _) = state.step(Event::Seat(None), SECOND, SECOND);
    assert_eq!((state.question(), state.pause(true)), (Question::Grant, Duration::ZERO));
    let (state, _) = state.step(Event::Granted(ID), SECOND, 2 * SECOND);
    assert_eq!((state.question(), state.token()), (Question::Take(ID), None));
    let (state, effects) = state.step(Event::Seat(Some(seat("me", ID.0, 3))), 2 * SECOND, 2 * SECOND);
    assert_eq!((state.question(), state.token(), effects.revoke), (Question::Renew(ID), Some(Revision(3)), None));
    // Counted from when the lease was asked for, not from when it was granted or the key was made.
    assert_eq!(state.deadline(), Some(SECOND + TTL - MARGIN));
}

#[test]
fn whoever_finds_another_at_the_helm_stands_by_and_gives_its_lease_back() {
    let (state, effects) = campaigning(SECOND).step(Event::Seat(Some(seat("other", 9, 5))), SECOND, SECOND);
    assert_eq!(state, State::Standby { leader: Some(leader("other")) });
    assert_eq!(effects.revoke, Some(ID));
    let (state, effects) = state.step(Event::Nothing, SECOND, SECOND);
    assert_eq!((state, effects.revoke), (State::Standby { leader: Some(leader("other")) }, None));
}

#[test]
fn key_with_our_lease_is_ours_though_the_answer_that_said_so_was_lost() {
    let (state, _) = campaigning(SECOND).step(Event::Nothing, SECOND, 2 * SECOND);
    assert_eq!(state.question(), Question::Take(ID));
    let (state, _) = state.step(Event::Seat(Some(seat("me", ID.0, 4))), 2 * SECOND, 3 * SECOND);
    assert_eq!(state.token(), Some(Revision(4)));
}

#[test]
fn leader_that_cannot_renew_stops_before_its_lease_ends() {
    let until = leading(SECOND).deadline().unwrap();
    assert!(until < SECOND + TTL);
    let (state, _) = leading(SECOND).step(Event::Nothing, 2 * SECOND, until - Duration::from_millis(1));
    assert_eq!(state.token(), Some(Revision(3)));
    let (state, effects) = state.step(Event::Nothing, 2 * SECOND, until);
    assert_eq!((state, effects.revoke), (State::Standby { leader: None }, Some(ID)));
}

#[test]
fn answer_that_comes_too_late_changes_nothing() {
    let until = leading(SECOND).deadline().unwrap();
    assert_eq!(leading(SECOND).step(Event::Renewed, until, until).0, State::Standby { leader: None });
    let won = Event::Seat(Some(seat("me", ID.0, 3)));
    assert_eq!(campaigning(SECOND).step(won, until, until).0, State::Standby { leader: None });
}

#[test]
fn renewal_counts_from_the_question() {
    let (state, _) = leading(SECOND).step(Event::Renewed, 2 * SECOND, 3 * SECOND);
    assert_eq!(state.deadline(), Some(2 * SECOND + TTL - MARGIN));
}

#[test]
fn leader_stops_when_its_lease_is_gone_or_a_commit_was_refused_for_its_token() {
    for event in [Event::LeaseGone, Event::Fenced] {
        let (state, effects) = leading(SECOND).step(event, SECOND, SECOND);
        assert_eq!((state, effects.revoke), (State::Standby { leader: None }, Some(ID)));
    }
}

async fn commit(store: &SharedStore, value: &str) -> Result<Outcome, StoreError> {
    store.commit(Transaction::default().then(Change::Put("a".to_owned(), value.into()))).await
}

/// A controller that is elected, its term's store, and what ends it.
async fn elect(cluster: &Cluster, name: &str) -> (Campaign, SharedStore, Lost) {
    let store = EtcdStore::new(&EtcdOptions::new(cluster.urls())).unwrap();
    let mut campaign = Campaign::new(Arc::new(store.clone()), Arc::new(store.clone()), leader(name));
    let token = timeout(60 * SECOND, campaign.until_elected(|_| ())).await.expect("nobody is elected");
    let lost = Lost::new();
    (campaign, Arc::new(Fenced::new(Arc::new(store), token, lost.clone())), lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_one_leads_the_next_takes_over_and_nobody_writes_after_that() {
    if cluster::is_missing("in_a_cluster_one_leads_the_next_takes_over_and_nobody_writes_after_that") {
        return;
    }
    let mut cluster = Cluster::start(&[]).await;
    let (mut first, store_of_first, lost) = elect(&cluster, "c1").await;
    assert!(matches!(commit(&store_of_first, "by c1").await, Ok(Outcome::Committed(_))));
    let stale = Transaction::default().when(Compare::Absent("a".to_owned())).then(Change::Delete("a".to_owned()));
    assert_eq!(store_of_first.commit(stale).await.unwrap(), Outcome::Refused, "another compare, not the token");

    // It is renewed, also by the members that are left: it outlives its lease several times.
    cluster.kill_member(cluster.leader().await.expect("a member leads"));
    let outlives = timeout(3 * TTL, first.until_lost(&lost)).await;
    assert!(outlives.is_err() || lost.is_set());
    if outlives.is_err() {
        assert!(matches!(commit(&store_of_first, "still by c1").await, Ok(Outcome::Committed(_))));
    }
    // It dies without a word: its lease has to end.
    drop(first);
    let begun = Instant::now();
    let (mut second, store_of_second, lost_by_second) = elect(&cluster, "c2").await;
    eprintln!("c2 leads {:?} after c1 died", begun.elapsed());
    if !lost.is_set() {
        assert_eq!(commit(&store_of_first, "too late").await, Err(StoreError::NotLeader));
    }
    assert!(lost.is_set(), "whoever was refused for its token knows that it is over");
    assert!(matches!(commit(&store_of_second, "by c2").await, Ok(Outcome::Committed(_))));

    // It resigns: nobody waits for its lease.
    second.resign().await;
    let begun = Instant::now();
    let (_third, store_of_third, _) = elect(&cluster, "c3").await;
    eprintln!("c3 leads {:?} after c2 resigned", begun.elapsed());
    assert_eq!(commit(&store_of_second, "too late").await, Err(StoreError::NotLeader));
    assert!(lost_by_second.is_set());
    assert!(matches!(commit(&store_of_third, "by c3").await, Ok(Outcome::Committed(_))));
}
