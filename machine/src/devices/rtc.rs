//! A CMOS clock at 0x70/0x71: the time of day in UTC, read only, and 128 bytes of memory.
//!
//! The time is the host's at each read, so it stays right across a move without being saved. There are no alarms and no
//! periodic interrupt; guests that want timers have the LAPIC and the PIT.

use super::{Device, DeviceState};
use crate::MachineError;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

const VERSION: u16 = 1;
const NAME: &str = "rtc";
const CMOS_BYTES: usize = 128;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

#[derive(Serialize, Deserialize)]
struct Saved {
    index: u8,
    memory: Vec<u8>,
}

/// The clock.
pub(crate) struct Rtc {
    state: Mutex<State>,
}

struct State {
    index: u8,
    memory: [u8; CMOS_BYTES],
}

/// A moment, as calendar fields.
#[derive(Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u64,
    day: u64,
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Calendar {
    /// From seconds since 1970, by the days-to-civil algorithm over 400-year eras.
    const fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + if month <= 2 { 1 } else { 0 },
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: seconds % 86_400 / 3_600,
            minute: seconds % 3_600 / 60,
            second: seconds % 60,
        }
    }
}

fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

impl Rtc {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { index: 0, memory: [0; CMOS_BYTES] }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn register(&self, now: &Calendar) -> u8 {
        match self.index {
            0x00 => bcd(now.second),
            0x02 => bcd(now.minute),
            0x04 => bcd(now.hour),
            0x06 => bcd(now.weekday),
            0x07 => bcd(now.day),
            0x08 => bcd(now.month),
            0x09 => bcd(now.year % 100),
            CENTURY => bcd(now.year / 100),
            // Divider running at 32,768 Hz, never updating.
            STATUS_A => 0x26,
            // 24-hour clock, BCD.
            STATUS_B => 0x02,
            STATUS_C => 0,
            // Battery good.
            STATUS_D => 0x80,
            other => self.memory[usize::from(other) % CMOS_BYTES],
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        data.fill(if offset == 0 { state.index } else { state.register(&Calendar::from_unix(seconds)) });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let mut state = self.lock();
        if offset == 0 {
            // The top bit masks NMIs, which this machine has none of.
            state.index = value & 0x7f;
        } else if state.index > STATUS_D && state.index != CENTURY {
            let index = usize::from(state.index);
            state.memory[index] = *value;
        }
    }

    fn save(&self) -> Result<DeviceState, MachineError> {
        let State { index, memory } = &*self.lock();
        DeviceState::encode(NAME, VERSION, &Saved { index: *index, memory: memory.to_vec() })
    }

    fn restore(&self, state: &DeviceState) -> Result<(), MachineError> {
        let Saved { index, memory } = state.decode(NAME, VERSION)?;
        let memory = memory.try_into().map_err(|_| super::failed(NAME, "its memory is not 128 bytes"))?;
        *self.lock() = State { index: index & 0x7f, memory };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_knows_leap_years_and_weekdays() {
        let expect = |year, month, day, weekday| Calendar { year, month, day, weekday, hour: 0, minute: 0, second: 0 };
        assert_eq!(Calendar::from_unix(0), expect(1970, 1, 1, 5));
        assert_eq!(Calendar::from_unix(951_782_400), expect(2000, 2, 29, 3));
        assert_eq!(Calendar::from_unix(4_107_542_400), expect(2100, 3, 1, 2));
        let late = Calendar::from_unix(86_399);
        assert_eq!((late.hour, late.minute, late.second), (23, 59, 59));
    }

    #[test]
    fn state_survives_a_round_trip() {
        let (one, two) = (Rtc::new(), Rtc::new());
        one.write(0, &[0x40]);
        one.write(1, &[0xab]);
        two.restore(&one.save().unwrap()).unwrap();
        let mut byte = [0];
        two.read(1, &mut byte);
        assert_eq!(byte, [0xab]);
    }
}
