//! COM1. Every access is an exit to the host's device model, up to 60 µs on some hosts: so bytes go out sixteen to a
//! status poll, and lines wait in a queue from which a few bytes leave at a time, between heartbeats and page writes.

use core::fmt;

use crate::ports;

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const FIFO_CONTROL: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const MODEM_CONTROL: u16 = DATA + 4;
const LINE_STATUS: u16 = DATA + 5;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x20;
const FIFO_BYTES: usize = 16;
/// Polls before a dead transmitter is given up: a second or more.
const TRANSMIT_POLLS_MAX: u32 = 100_000;
const QUEUE_BYTES: usize = 16384;

/// A line under construction; what does not fit is cut.
pub struct Line {
    bytes: [u8; 1000],
    used: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self { bytes: [0; 1000], used: 0 }
    }

    /// What was written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Forgets it.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Appends raw bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(self.bytes.len() - self.used);
        self.bytes[self.used..self.used + count].copy_from_slice(&bytes[..count]);
        self.used += count;
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// The serial port; only vCPU 0 may hold one, which is why no line is ever torn.
pub struct Serial {
    input: Line,
    queue: [u8; QUEUE_BYTES],
    first: usize,
    queued: usize,
    /// Bytes the transmitter surely takes before it must be asked again.
    room: usize,
}

impl Serial {
    /// Programs the UART: 115200 8N1, FIFOs on, no interrupts.
    pub fn new() -> Self {
        let setup = [
            (INTERRUPT_ENABLE, 0),
            (LINE_CONTROL, 0x80),
            (DATA, 1),
            (INTERRUPT_ENABLE, 0),
            (LINE_CONTROL, 3),
            (FIFO_CONTROL, 7),
            (MODEM_CONTROL, 3),
        ];
        for (port, value) in setup {
            ports::write(port, value);
        }
        Self { input: Line::new(), queue: [0; QUEUE_BYTES], first: 0, queued: 0, room: 0 }
    }

    /// Queues a whole line, its end included; false if there is no room for all of it.
    pub fn queue(&mut self, line: &[u8]) -> bool {
        if line.len() > QUEUE_BYTES - self.queued {
            return false;
        }
        for &byte in line {
            self.queue[(self.first + self.queued) % QUEUE_BYTES] = byte;
            self.queued += 1;
        }
        true
    }

    /// Sends up to `bytes_max` of what is queued; true if more could be sent at once.
    pub fn pump(&mut self, bytes_max: usize) -> bool {
        for _ in 0..bytes_max.min(self.queued) {
            if !self.send(self.queue[self.first]) {
                return false;
            }
            self.first = (self.first + 1) % QUEUE_BYTES;
            self.queued -= 1;
        }
        self.queued > 0
    }

    /// Sends one byte ahead of the queue; false if the transmitter is full.
    pub fn send(&mut self, byte: u8) -> bool {
        if self.room == 0 {
            if ports::read(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                return false;
            }
            self.room = FIFO_BYTES;
        }
        self.room -= 1;
        ports::write(DATA, byte);
        true
    }

    /// Sends all that is queued, unless the transmitter is dead.
    pub fn flush(&mut self) {
        let mut polls = 0;
        while self.queued > 0 && polls < TRANSMIT_POLLS_MAX {
            self.pump(FIFO_BYTES);
            polls += 1;
        }
    }

    /// Takes what has arrived; hands a complete input line to `answer`.
    pub fn poll_input(&mut self, mut answer: impl FnMut(&mut Self, &[u8])) {
        for _ in 0..64 {
            let status = ports::read(LINE_STATUS);
            if status & DATA_READY == 0 || status == 0xff {
                return;
            }
            let byte = ports::read(DATA);
            if byte == b'\n' || byte == b'\r' {
                let line = core::mem::replace(&mut self.input, Line::new());
                answer(self, line.as_bytes());
            } else {
                self.input.push(&[byte]);
            }
        }
    }
}
