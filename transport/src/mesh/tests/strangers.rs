//! A peer that says what no mesh would say: played by hand.

use super::*;
use crate::mesh::{
    config::Configs,
    opening::{Facts, Opening},
};
use crate::{congestion::Farewell, session::framed};
use quinn_proto::Endpoint;

/// Host 0, by hand, and the mesh of host 1.
struct Stage {
    world: World,
    called: Node,
    runtime: tokio::runtime::Runtime,
}

fn stage() -> Stage {
    let world = world(3);
    let called = node(options(&world, 1));
    called.knows(0, "127.0.0.1:9".parse().unwrap());
    called.knows(2, "127.0.0.1:9".parse().unwrap());
    Stage { world, called, runtime: tokio::runtime::Runtime::new().unwrap() }
}

impl Stage {
    fn facts(&self, me: u8) -> Facts {
        let (ticket, machine) = (self.world.ticket.clone(), "vm1".parse().unwrap());
        Facts { ticket, machine, me: Peer(me), incarnation: 100 }
    }

    fn config(&self) -> quinn_proto::ClientConfig {
        let configs = Configs::new(Arc::clone(&self.world.identities[0]), tuning()).unwrap();
        configs.client(&expected(1), self.called.address.ip(), &Farewell::default()).unwrap()
    }

    /// Connects, and shows `opening`.
    async fn call(&self, opening: &Opening) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(self.config());
        let connection = endpoint.connect(self.called.address, "vmotion").unwrap().await.unwrap();
        let (mut send, receive) = connection.open_bi().await.unwrap();
        send.write_all(&framed(opening).unwrap()).await.unwrap();
        (connection, send, receive)
    }

    /// A connection that is open, and its first stream.
    async fn open(&self) -> (quinn::Connection, impl Sized) {
        let (connection, send, mut receive) = self.call(&self.facts(0).opening(Peer(1))).await;
        let mut length = [0; 4];
        receive.read_exact(&mut length).await.unwrap();
        let mut answer = vec![0; u32::from_le_bytes(length) as usize];
        receive.read_exact(&mut answer).await.unwrap();
        let answer: Opening = postcard::from_bytes(&answer).unwrap();
        assert_eq!(self.facts(0).check(&answer), Ok(Peer(1)));
        (connection, (send, receive))
    }

    /// Why the mesh refuses this opening.
    fn refuses(&self, opening: &Opening) -> String {
        self.runtime.block_on(async {
            let (connection, _send, _receive) = self.call(opening).await;
            connection.closed().await.to_string()
        })
    }

    /// Why the mesh closes a connection on which each of these is said on a stream, which then ends if `end`.
    fn closes(&self, said: &[&[u8]], end: bool) -> String {
        self.runtime.block_on(async {
            let (connection, _first) = self.open().await;
            let mut streams = Vec::new();
            for bytes in said {
                let mut stream = connection.open_uni().await.unwrap();
                stream.write_all(bytes).await.unwrap();
                if end {
                    stream.finish().unwrap();
                }
                streams.push(stream);
            }
            let reason = connection.closed().await.to_string();
            // The user hears the same.
            self.called.hears(|heard| {
                let lost = heard.iter().rev().find_map(|heard| match heard {
                    Heard::Lost(0, why) => Some(why.clone()),
                    _ => None,
                });
                lost.is_some_and(|why| reason.contains(&why))
            });
            reason
        })
    }
}

#[test]
fn an_opening_that_does_not_fit_is_refused_by_name() {
    let stage = stage();
    let cases = [
        (stage.facts(0).opening(Peer(3)), "to: the peer wants host 3, this end is 1"),
        (stage.facts(1).opening(Peer(1)), "from: host 1 does not call host 1"),
        (stage.facts(2).opening(Peer(1)), "from: host 2 does not call host 1"),
        (Facts { ticket: MeshTicket::random(), ..stage.facts(0) }.opening(Peer(1)), "ticket"),
    ];
    for (opening, why) in cases {
        let refused = stage.refuses(&opening);
        assert!(refused.contains(why), "{refused}");
        assert!(stage.called.mesh.figures().refused_why.unwrap().contains(why));
    }
    assert!(stage.called.heard().is_empty());
}

#[test]
fn streams_that_break_the_protocol_end_the_connection_by_name() {
    let stage = stage();
    let long = [&[4][..], &(u32::try_from(MESSAGE_BYTES_MAX).unwrap() + 1).to_le_bytes()].concat();
    let cases: [(&[&[u8]], bool, &str); 6] = [
        (&[&long], false, "announces 65537 bytes"),
        (&[&[16]], false, "stream number 16 is not below 16"),
        (&[&[5, 0, 0, 0, 0], &[5, 0, 0, 0, 0]], false, "stream number 5 is used twice"),
        (&[&[5, 9, 0, 0, 0, 1]], true, "stream 5 ends inside a message"),
        (&[&[5, 1, 0, 0, 0, 1]], true, "stream 5 ends between two messages"),
        (&[&[]], true, "a stream ends before its number"),
    ];
    for (said, end, why) in cases {
        let closed = stage.closes(said, end);
        assert!(closed.contains(why), "{closed}");
    }
    let messages = stage.called.heard().into_iter().filter(|heard| matches!(heard, Heard::Message(..)));
    let whole = [Heard::Message(0, 5, vec![]), Heard::Message(0, 5, vec![1])];
    assert!(messages.into_iter().all(|message| whole.contains(&message)), "what was whole is all that came");
}

#[test]
fn a_stream_that_is_reset_ends_the_connection() {
    let stage = stage();
    let reason = stage.runtime.block_on(async {
        let (connection, _first) = stage.open().await;
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&[5, 1, 0, 0, 0, 1]).await.unwrap();
        stage.called.hears_message(0, 5, &[1]);
        stream.reset(7u32.into()).unwrap();
        connection.closed().await.to_string()
    });
    assert!(reason.contains("a stream is reset with code 7"), "{reason}");
}

#[test]
fn a_newer_connection_of_the_same_host_takes_the_place_of_the_older() {
    let stage = stage();
    stage.runtime.block_on(async {
        let (older, _first) = stage.open().await;
        let (newer, _second) = stage.open().await;
        let closed = older.closed().await.to_string();
        assert!(closed.contains("a newer connection takes its place"), "{closed}");
        let mut stream = newer.open_uni().await.unwrap();
        stream.write_all(&[0, 1, 0, 0, 0, 9]).await.unwrap();
        stage.called.hears_message(0, 0, &[9]);
        assert!(newer.close_reason().is_none());
        assert_eq!(stage.called.ways(0), [true, false, true]);
    });
}

#[test]
fn what_comes_in_an_opening_that_is_none_is_refused() {
    let stage = stage();
    let reason = |bytes: &'static [u8]| {
        stage.runtime.block_on(async {
            let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            endpoint.set_default_client_config(stage.config());
            let connection = endpoint.connect(stage.called.address, "vmotion").unwrap().await.unwrap();
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(bytes).await.unwrap();
            connection.closed().await.to_string()
        })
    };
    assert!(reason(&[0xff; 4]).contains("too long"));
    assert!(reason(&[3, 0, 0, 0, 1, 2, 3]).contains("no opening"));
    assert!(reason(&[0; 4]).contains("no opening"));
}

#[test]
fn callers_who_only_knock_do_not_keep_a_host_out() {
    let stage = stage();
    for _ in 0..300 {
        let mut caller = Endpoint::new(Arc::new(tuning().endpoint()), None, true, None);
        let (_, mut connection) = caller.connect(Instant::now(), stage.config(), stage.called.address, "x").unwrap();
        let mut packet = Vec::new();
        let transmit = connection.poll_transmit(Instant::now(), 1, &mut packet).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&packet[..transmit.size], stage.called.address).unwrap();
    }
    let host = node(options(&stage.world, 0));
    host.knows(1, stage.called.address);
    eventually("connected", || host.is_connected(1));
}
