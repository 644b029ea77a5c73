//! Three parts of a machine, each with a vCPU; the I/O APIC is in the first.

use super::*;
use crate::part::{Space, VcpuSet};
use proptest::prelude::*;
use std::collections::VecDeque;

/// What one part sends to another.
#[derive(Debug, Clone, Copy)]
enum Letter {
    Interrupt { vcpu: u8, message: Message },
    Addressing { vcpu: u8, addressing: Addressing },
    EndOfInterrupt(u8),
}

/// Ordered streams between the parts, and who has which vCPU.
#[derive(Debug, Default)]
struct Post {
    letters: TestMutex<[[VecDeque<Letter>; 3]; 3]>,
    owners: TestMutex<[usize; 3]>,
}

#[derive(Debug)]
struct Sender {
    part: usize,
    post: Arc<Post>,
}

impl Sender {
    fn send(&self, to: usize, letter: Letter) {
        self.post.letters.lock().unwrap()[self.part][to].push_back(letter);
    }
}

impl Elsewhere for Sender {
    fn interrupt(&self, vcpu: u8, message: Message) {
        let owner = self.post.owners.lock().unwrap()[usize::from(vcpu)];
        self.send(owner, Letter::Interrupt { vcpu, message });
    }
    fn addressing(&self, vcpu: u8, addressing: Addressing) {
        for other in (0..3).filter(|other| *other != self.part) {
            self.send(other, Letter::Addressing { vcpu, addressing });
        }
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.send(0, Letter::EndOfInterrupt(vector));
    }
    // As another part's device does it: the old controllers of this one have something at 0x34.
    fn read(&self, _: u8, space: Space, address: u64, data: &mut [u8]) {
        assert_eq!((space, address), (Space::Ports, ACKNOWLEDGE_PORT));
        data.copy_from_slice(&[0x34, 1]);
    }
    fn write(&self, _: u8, _: Space, _: u64, _: &[u8]) {}
}

struct Parts {
    post: Arc<Post>,
    parts: Vec<UserInterrupts>,
}

impl Parts {
    fn new() -> Self {
        let post = Arc::new(Post { owners: TestMutex::new([0, 1, 2]), ..Post::default() });
        let part = |index: u8| {
            let elsewhere: Arc<dyn Elsewhere> = Arc::new(Sender { part: usize::from(index), post: Arc::clone(&post) });
            UserInterrupts::new(3, Some(&Part { vcpus: VcpuSet::NONE.with(index), devices: index == 0, elsewhere }))
        };
        let parts = Self { parts: (0..3).map(part).collect(), post };
        for (vcpu, part) in parts.parts.iter().enumerate() {
            part.write_local(vcpu, SPURIOUS, 0x1ff, 0);
            part.write_local(vcpu, LOGICAL, 1 << (24 + vcpu), 0);
        }
        parts.bring_all();
        parts
    }

    /// The next letter between these two arrives; false when there is none.
    fn bring(&self, from: usize, to: usize) -> bool {
        let letter = self.post.letters.lock().unwrap()[from][to].pop_front();
        match letter {
            Some(Letter::Interrupt { vcpu, message }) => self.parts[to].arrive(usize::from(vcpu), message),
            Some(Letter::Addressing { vcpu, addressing }) => {
                self.parts[to].set_addressing(usize::from(vcpu), addressing);
            }
            Some(Letter::EndOfInterrupt(vector)) => self.parts[to].end_of_interrupt(vector),
            None => return false,
        }
        true
    }

    fn bring_all(&self) {
        while (0..9).any(|pair| self.bring(pair / 3, pair % 3)) {}
    }

    /// The vector that `vcpu` takes next, and is done with.
    fn take(&self, vcpu: usize) -> Option<u8> {
        let owner = self.post.owners.lock().unwrap()[vcpu];
        let vector = self.parts[owner].slot(vcpu).apic.take()?;
        self.parts[owner].write_local(vcpu, END, 0, 0);
        Some(vector)
    }

    /// As a machine does it: the vCPU's APIC goes with its state, between leaving and coming.
    fn carry(&self, vcpu: usize, to: usize, meanwhile: impl FnOnce()) {
        let from = self.post.owners.lock().unwrap()[vcpu];
        self.parts[from].leave(vcpu);
        let (apic, init, start) = {
            let slot = self.parts[from].slot(vcpu);
            (slot.apic.clone(), slot.init, slot.start)
        };
        self.parts[to].expect(vcpu);
        self.post.owners.lock().unwrap()[vcpu] = to;
        meanwhile();
        {
            let mut slot = self.parts[to].slot(vcpu);
            (slot.apic, slot.init, slot.start) = (apic, init, start);
        }
        self.parts[to].come(vcpu);
    }
}

#[test]
fn messages_reach_vcpus_of_other_parts() {
    let parts = Parts::new();
    send(&parts.parts[0], 0, 2, 0x4031);
    send(&parts.parts[1], 1, 0, OTHERS | 0x4041);
    parts.parts[2].deliver(message(Destination::Logical(0b011), Delivery::Fixed, 0x51), None, None);
    parts.bring_all();
    assert_eq!([parts.take(0), parts.take(0)], [Some(0x51), Some(0x41)]);
    assert_eq!([parts.take(1), parts.take(1)], [Some(0x51), None]);
    assert_eq!([parts.take(2), parts.take(2), parts.take(2)], [Some(0x41), Some(0x31), None]);
}

#[test]
fn init_and_start_arrive_in_order_and_tell_everybody_how_the_processor_is_found_now() {
    let parts = Parts::new();
    send(&parts.parts[0], 0, 1, INIT);
    send(&parts.parts[0], 0, 1, START_AT_8);
    parts.bring_all();
    assert_eq!(parts.parts[1].slot(1).take_restart(), Restart { init: true, start: Some(8) });
    // It is in no group after INIT.
    parts.parts[2].deliver(message(Destination::Logical(0xff), Delivery::Fixed, 0x51), None, None);
    parts.bring_all();
    assert_eq!(parts.take(1), None);
    assert_eq!(parts.take(0), Some(0x51));
}

#[test]
fn a_line_that_is_still_high_interrupts_again_when_the_end_comes_from_elsewhere() {
    let parts = Parts::new();
    let hub = &parts.parts[0];
    // Level-triggered, for the processor with the id 2.
    set_entry(hub, 5, 2 << 56 | 0x8061);
    let message = hub.io_apic().set_line(5, true);
    hub.deliver(message.unwrap(), None, None);
    parts.bring_all();
    assert_eq!(parts.take(2), Some(0x61));
    parts.bring_all();
    let _ = hub.io_apic().set_line(5, false);
    assert_eq!(parts.take(2), Some(0x61), "its line was high");
    parts.bring_all();
    assert_eq!(parts.take(2), None);
}

#[test]
fn lowest_priority_prefers_who_is_here() {
    let parts = Parts::new();
    for _ in 0..3 {
        parts.parts[1].deliver(message(Destination::Logical(0xff), Delivery::LowestPriority, 0x71), None, None);
        parts.bring_all();
        assert_eq!([parts.take(0), parts.take(1), parts.take(2)], [None, Some(0x71), None]);
    }
}

#[test]
fn what_comes_for_a_vcpu_on_its_way_is_there_when_it_is() {
    let parts = Parts::new();
    send(&parts.parts[0], 0, 1, 0x4031);
    parts.bring_all();
    // Sent before it leaves, and brought after.
    send(&parts.parts[2], 2, 1, 0x4051);
    parts.carry(1, 2, || {
        send(&parts.parts[0], 0, 1, 0x4041);
        parts.bring_all();
    });
    assert_eq!([parts.take(1), parts.take(1), parts.take(1)], [Some(0x51), Some(0x41), Some(0x31)]);
    assert!(matches!(parts.parts[1].slot(1).presence, Presence::Elsewhere));
}

proptest! {
    /// Whoever has vCPU 1, and whenever letters come: each interrupt arrives once.
    #[test]
    fn no_interrupt_is_lost_or_doubled(steps in prop::collection::vec((0usize..3, 0usize..3, 0u8..4), 1..80)) {
        let parts = Parts::new();
        let (mut next, mut taken) = (0x20u8, Vec::new());
        for (a, b, what) in steps {
            match what {
                // Processors 0 and 2 do not move.
                0 => {
                    let sender = if a == 1 { 2 } else { a };
                    send(&parts.parts[sender], sender, 1, 0x4000 | u32::from(next));
                    next += 1;
                }
                1 => parts.carry(1, a, || while parts.bring(b, a) {}),
                2 => _ = parts.bring(a, b),
                _ => taken.extend(parts.take(1)),
            }
        }
        parts.bring_all();
        taken.extend(std::iter::from_fn(|| parts.take(1)));
        taken.sort_unstable();
        prop_assert_eq!(taken, (0x20..next).collect::<Vec<_>>());
    }
}

#[test]
fn old_interrupts_go_to_the_first_vcpu_wherever_it_is() {
    let parts = Parts::new();
    begin_old_controllers(&parts.parts[0]);
    // It leaves while its interrupt is on the way to it.
    parts.parts[0].pulse(4);
    assert!(parts.parts[0].slot(0).has_interrupt());
    parts.parts[0].leave(0);
    parts.parts[1].expect(0);
    parts.post.owners.lock().unwrap()[0] = 1;
    parts.parts[1].slot(0).apic.wire_old_controller();
    parts.parts[1].come(0);
    assert!(!parts.parts[1].slot(0).has_interrupt());
    parts.bring_all();
    assert!(parts.parts[1].slot(0).take_external(), "it is told again where it is");
    assert_eq!(parts.parts[1].acknowledge(0), Some(0x34));
    assert_eq!(parts.parts[0].acknowledge(0), Some(0x34));
    // The next goes there at once.
    parts.parts[0].write_pic(PicRegister::Command(0), 0x20);
    parts.parts[0].pulse(4);
    parts.bring_all();
    assert!(parts.parts[1].slot(0).take_external());
}
