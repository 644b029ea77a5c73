//! Frames are built here byte by byte and cut by the book; what comes out in ranges must be the same.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Sent {
    v6: bool,
    tcp: bool,
    options: usize,
    each: u16,
    payload: Vec<u8>,
}

const FIN_PSH_ACK_CWR: u8 = 0x99;
const SEQUENCE: u32 = u32::MAX - 3000;
const IDENTIFICATION: u16 = u16::MAX - 1;

impl Sent {
    fn transport(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn headers(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.options * 4 } else { 8 }
    }

    /// A packet of the book: with `payload`, the `index`-th.
    fn packet(&self, index: usize, payload: &[u8], last: bool) -> Vec<u8> {
        let mut packet = vec![0; self.headers()];
        let length = u16::try_from(self.headers() + payload.len()).unwrap();
        if self.v6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            packet[6] = if self.tcp { 6 } else { 17 };
            packet[8..40].copy_from_slice(&[7; 32]);
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[4..6].copy_from_slice(&IDENTIFICATION.wrapping_add(u16::try_from(index).unwrap()).to_be_bytes());
            packet[9] = if self.tcp { 6 } else { 17 };
            packet[12..20].copy_from_slice(&[10, 98, 0, 1, 10, 98, 0, 2]);
            let checksum = !fold(sum(&packet[..20]));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        let at = self.transport();
        let transport_length = length - u16::try_from(at).unwrap();
        if self.tcp {
            let sent = u32::try_from(index * usize::from(self.each)).unwrap();
            packet[at + 4..at + 8].copy_from_slice(&SEQUENCE.wrapping_add(sent).to_be_bytes());
            packet[at + 12] = u8::try_from(5 + self.options).unwrap() << 4;
            packet[at + 13] = FIN_PSH_ACK_CWR;
            if index > 0 {
                packet[at + 13] &= !0x80;
            }
            if !last {
                packet[at + 13] &= !0x09;
            }
        } else {
            packet[at + 4..at + 6].copy_from_slice(&transport_length.to_be_bytes());
        }
        let checksum = pseudo_header_sum(&packet[..at], transport_length, self.tcp);
        let checksum_at = at + if self.tcp { 16 } else { 6 };
        packet[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet.extend_from_slice(payload);
        packet
    }

    fn frame(&self) -> Vec<u8> {
        let kind = match (self.tcp, self.v6) {
            (true, false) => GSO_TCP4,
            (true, true) => GSO_TCP6,
            (false, _) => GSO_UDP,
        };
        // A length of headers that is only a hint.
        self.prefix(kind, 14, self.each).into_iter().chain(self.packet(0, &self.payload, true)).collect()
    }

    fn prefix(&self, kind: u8, headers: u16, each: u16) -> Vec<u8> {
        let numbers = [headers, each, u16::try_from(self.transport()).unwrap(), if self.tcp { 16 } else { 6 }];
        [NEEDS_CHECKSUM, kind].into_iter().chain(numbers.into_iter().flat_map(u16::to_ne_bytes)).collect()
    }

    fn payloads(&self) -> Vec<&[u8]> {
        self.payload.chunks(usize::from(self.each)).collect()
    }
}

prop_compose! {
    fn sent()(
        v6: bool,
        tcp: bool,
        options in 0..=10usize,
        each in 1..1500u16,
        payload in proptest::collection::vec(any::<u8>(), 1..6000),
    ) -> Sent {
        Sent { v6, tcp, options, each, payload }
    }
}

fn written(packets: &Packets) -> Vec<u8> {
    packets.parts().slices().concat()
}

proptest! {
    #[test]
    fn each_packet_is_what_the_book_says(sent in sent()) {
        let packets = Packets::of(&sent.frame());
        let payloads = sent.payloads();
        prop_assert_eq!(usize::from(packets.count()), payloads.len());
        if payloads.len() == 1 {
            // Nothing to cut: handed on as it is.
            prop_assert_eq!(written(&packets), sent.frame());
            return Ok(());
        }
        for (index, (length, packet)) in packets.each().enumerate() {
            let expected = sent.packet(index, payloads[index], index + 1 == payloads.len());
            prop_assert_eq!(usize::try_from(length).unwrap(), expected.len());
            prop_assert_eq!(written(&packet), [sent.prefix(GSO_NONE, 0, 0), expected].concat());
        }
    }

    #[test]
    fn packets_that_follow_each_other_are_one_again(sent in sent(), lost in any::<proptest::sample::Index>()) {
        let packets = Packets::of(&sent.frame());
        let each: Vec<Packets> = packets.each().map(|(_, packet)| packet).collect();
        let lost = lost.index(each.len());
        for (index, range) in [(0, &each[..lost]), (lost + 1, &each[lost + 1..])] {
            let Some((first, rest)) = range.split_first() else { continue };
            let mut joined = first.clone();
            for packet in rest {
                prop_assert!(joined.join(packet));
            }
            if rest.is_empty() {
                continue;
            }
            let payload = sent.payloads()[index..index + range.len()].concat();
            let kind = sent.frame()[1];
            let expected = sent.packet(index, &payload, index + range.len() == each.len());
            let prefix = sent.prefix(kind, u16::try_from(sent.headers()).unwrap(), sent.each);
            prop_assert_eq!(written(&joined), [prefix, expected].concat());
        }
        if each.len() > 2 {
            prop_assert!(!each[0].clone().join(&each[2]), "what is missing in between is not made up");
            prop_assert!(!each[1].clone().join(&each[0]));
            prop_assert!(!each[0].clone().join(&each[0]));
        }
    }

    #[test]
    fn frames_that_make_no_sense_are_handed_on_whole(frame in proptest::collection::vec(any::<u8>(), PREFIX..200)) {
        let packets = Packets::of(&frame);
        if packets.count() == 1 {
            prop_assert_eq!(written(&packets), frame);
        } else {
            packets.each().for_each(|(_, packet)| drop(written(&packet)));
        }
    }

    #[test]
    fn bytes_flipped_in_a_sound_frame_harm_nobody(sent in sent(), at in any::<proptest::sample::Index>(), byte: u8) {
        let mut frame = sent.frame();
        let at = at.index(PREFIX + sent.headers());
        frame[at] = byte;
        Packets::of(&frame).each().for_each(|(_, packet)| drop(written(&packet)));
    }
}
