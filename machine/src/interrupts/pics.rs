//! The two 8259A of a PC: 16 lines, eight of them behind line 2 of the first. Pure, as [`super::LocalApic`] is.
//!
//! Kernels with an I/O APIC only mask them; before that, and in kernels without one, they are connected to the first processor's LINT0.
//! Reference: Intel 8259A data sheet; ports and lines as in the PC/AT, levels by the PCI chipsets' ELCR. No maintained crate has a model of
//! one.
//!
//! ```text
//! line ─▶ requested (IRR) ── not masked, above what is in service ─▶ output high ── acknowledge: in service (ISR) ── EOI ─▶ done
//! ```

#![expect(clippy::cast_possible_truncation, reason = "a byte has eight bits at most")]

use serde::{Deserialize, Serialize};

/// Lines of both.
pub const PIC_LINES: usize = 16;
/// The line of the first that the second is behind.
const CASCADE: u8 = 2;
/// Initialisation command words: what tells the first from others, and bits of the first and the fourth.
const ICW1: u8 = 1 << 4;
const ICW1_NEEDS_FOURTH: u8 = 1;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW4_AUTO_END: u8 = 1 << 1;
const ICW4_NESTED: u8 = 1 << 4;
/// Operation command word 3, and its bits.
const OCW3: u8 = 1 << 3;
const OCW3_READ: u8 = 1 << 1;
const OCW3_READ_SERVICE: u8 = 1;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_SPECIAL_MASK: u8 = 1 << 5;
const OCW3_SET_SPECIAL_MASK: u8 = 1 << 6;
/// Lines that can be level-triggered, of the first and the second: not timer, keyboard, cascade, clock and coprocessor.
const LEVELS: [u8; 2] = [0xf8, 0xde];

/// What the next byte to the data port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Expects {
    #[default]
    Mask,
    Second,
    Third,
    Fourth,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Pic {
    high: u8,
    requested: u8,
    in_service: u8,
    mask: u8,
    /// Lines that are level-triggered.
    levels: u8,
    /// The vector of line 0.
    base: u8,
    /// The line with the highest priority.
    first: u8,
    expects: Expects,
    needs_fourth: bool,
    is_single: bool,
    reads_service: bool,
    polled: bool,
    special_mask: bool,
    nested: bool,
    auto_end: bool,
    auto_rotate: bool,
}

impl Pic {
    /// How far `lines`' most important one is from the first; 8 when there is none.
    const fn rank(&self, lines: u8) -> u8 {
        lines.rotate_right(self.first as u32).trailing_zeros() as u8
    }

    /// The line to be acknowledged next.
    const fn pending(&self, is_first: bool) -> Option<u8> {
        let rank = self.rank(self.requested & !self.mask);
        let mut serving = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        if self.nested && is_first {
            // Others of the second may interrupt the one that is served there.
            serving &= !(1 << CASCADE);
        }
        if rank < self.rank(serving) { Some((rank + self.first) & 7) } else { None }
    }

    const fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        if high {
            if self.levels & bit != 0 || self.high & bit == 0 {
                self.requested |= bit;
            }
            self.high |= bit;
        } else {
            self.high &= !bit;
            if self.levels & bit != 0 {
                self.requested &= !bit;
            }
        }
    }

    const fn acknowledge(&mut self, line: u8) {
        let bit = 1 << line;
        if self.levels & bit == 0 {
            self.requested &= !bit;
        }
        if !self.auto_end {
            self.in_service |= bit;
        } else if self.auto_rotate {
            self.first = (line + 1) & 7;
        }
    }

    const fn command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            let (high, levels) = (self.high, self.levels);
            *self = Self {
                high,
                // A level is still there, an edge is forgotten.
                requested: high & levels,
                in_service: 0,
                mask: 0,
                levels,
                base: self.base,
                first: 0,
                expects: Expects::Second,
                needs_fourth: value & ICW1_NEEDS_FOURTH != 0,
                is_single: value & ICW1_SINGLE != 0,
                reads_service: false,
                polled: false,
                special_mask: false,
                nested: false,
                auto_end: false,
                auto_rotate: false,
            };
        } else if value & OCW3 != 0 {
            self.polled = value & OCW3_POLL != 0;
            if value & OCW3_READ != 0 {
                self.reads_service = value & OCW3_READ_SERVICE != 0;
            }
            if value & OCW3_SET_SPECIAL_MASK != 0 {
                self.special_mask = value & OCW3_SPECIAL_MASK != 0;
            }
        } else {
            self.end(value >> 5, value & 7);
        }
    }

    /// Operation command word 2.
    const fn end(&mut self, how: u8, named: u8) {
        let rank = self.rank(self.in_service);
        let serving = if rank < 8 { Some((rank + self.first) & 7) } else { None };
        match (how, serving) {
            (0, _) => self.auto_rotate = false,
            (4, _) => self.auto_rotate = true,
            (1, Some(line)) => self.in_service &= !(1 << line),
            (5, Some(line)) => {
                self.in_service &= !(1 << line);
                self.first = (line + 1) & 7;
            }
            (3, _) => self.in_service &= !(1 << named),
            (6, _) => self.first = (named + 1) & 7,
            (7, _) => {
                self.in_service &= !(1 << named);
                self.first = (named + 1) & 7;
            }
            _ => {}
        }
    }

    const fn set_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
            Expects::Second => {
                self.base = value & 0xf8;
                match (self.is_single, self.needs_fourth) {
                    (false, _) => Expects::Third,
                    (true, true) => Expects::Fourth,
                    (true, false) => Expects::Mask,
                }
            }
            // Which line the other is behind: fixed in a PC.
            Expects::Third if self.needs_fourth => Expects::Fourth,
            Expects::Third => Expects::Mask,
            Expects::Fourth => {
                self.nested = value & ICW4_NESTED != 0;
                self.auto_end = value & ICW4_AUTO_END != 0;
                Expects::Mask
            }
        };
    }

    const fn read(&mut self, is_data: bool, is_first: bool) -> u8 {
        if self.polled {
            self.polled = false;
            return match self.pending(is_first) {
                Some(line) => {
                    self.acknowledge(line);
                    line | 0x80
                }
                None => 0,
            };
        }
        match (is_data, self.reads_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requested,
        }
    }
}

/// A register of one of them, as a port names it. The first is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PicRegister {
    /// Commands and states: 0x20, 0xa0.
    Command(usize),
    /// Masks: 0x21, 0xa1.
    Data(usize),
    /// Which lines are level-triggered: 0x4d0, 0x4d1.
    Levels(usize),
}

/// Both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pics {
    pics: [Pic; 2],
    /// The processor has been told that the output is high.
    told: bool,
}

impl Default for Pics {
    /// Masked, as firmware leaves them: a guest that knows nothing of them is not interrupted.
    fn default() -> Self {
        Self { pics: [Pic { mask: 0xff, ..Pic::default() }; 2], told: false }
    }
}

impl Pics {
    /// The guest reads a register.
    pub fn read(&mut self, register: PicRegister) -> u8 {
        let value = match register {
            PicRegister::Command(which) => self.pics[which & 1].read(false, which & 1 == 0),
            PicRegister::Data(which) => self.pics[which & 1].read(true, which & 1 == 0),
            PicRegister::Levels(which) => self.pics[which & 1].levels,
        };
        // A poll has acknowledged.
        self.cascade();
        value
    }

    /// The guest writes a register.
    pub fn write(&mut self, register: PicRegister, value: u8) {
        match register {
            PicRegister::Command(which) => self.pics[which & 1].command(value),
            PicRegister::Data(which) => self.pics[which & 1].set_data(value),
            PicRegister::Levels(which) => self.pics[which & 1].levels = value & LEVELS[which & 1],
        }
        self.cascade();
    }

    /// A line is high now, or low. Lines that do not exist do nothing.
    pub fn set_line(&mut self, line: usize, high: bool) {
        // Line 2 is the second's.
        let Some(number) = u8::try_from(line).ok().filter(|_| line < PIC_LINES && line != usize::from(CASCADE)) else {
            return;
        };
        self.pics[line / 8].set_line(number & 7, high);
        self.cascade();
    }

    /// Something waits for the processor.
    #[must_use]
    pub const fn output(&self) -> bool {
        self.pics[0].pending(true).is_some()
    }

    /// The output has become high since the processor was last told: it is to be told now.
    pub const fn take_news(&mut self) -> bool {
        let output = self.output();
        let is_new = output && !self.told;
        self.told = output;
        is_new
    }

    /// The processor takes what waits: its vector. `None` when nothing does any more, where the chip would make up a spurious interrupt.
    pub fn acknowledge(&mut self) -> Option<u8> {
        // Whatever waits behind this is news again.
        self.told = false;
        let line = self.pics[0].pending(true)?;
        self.pics[0].acknowledge(line);
        let vector = if line == CASCADE {
            let second = &mut self.pics[1];
            let line = second.pending(false)?;
            second.acknowledge(line);
            second.base | line
        } else {
            self.pics[0].base | line
        };
        self.cascade();
        Some(vector)
    }

    /// The processor is to be told again: it may be another's now.
    pub const fn forget_told(&mut self) {
        self.told = false;
    }

    /// One that was saved: what no guest could have brought about is put right.
    #[must_use]
    pub fn restored(mut self) -> Self {
        for (pic, levels) in self.pics.iter_mut().zip(LEVELS) {
            pic.base &= 0xf8;
            pic.first &= 7;
            pic.levels &= levels;
        }
        // Who has it now was told nothing.
        self.told = false;
        self.cascade();
        self
    }

    /// The second's output is a line of the first, which is requested as long as the second has something.
    const fn cascade(&mut self) {
        if self.pics[1].pending(false).is_some() {
            self.pics[0].requested |= 1 << CASCADE;
        } else {
            self.pics[0].requested &= !(1 << CASCADE);
        }
    }
}

#[cfg(test)]
mod tests;
