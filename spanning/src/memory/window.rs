//! How long a host keeps a page it was just given (rule 7): one instruction may need several pages at once, and two hosts that take
//! them from each other at once get nowhere.

use crate::directory::Moment;

/// The first window, in microseconds.
const WINDOW_FIRST_US: u64 = 100;
/// How often it doubles at most: up to 800 µs.
const LEVEL_MAX: u8 = 3;
/// A page that is taken away within so many windows bounces.
const BOUNCE_WINDOWS: u64 = 4;
/// A page that stays for so many windows is calm.
const CALM_WINDOWS: u64 = 64;

/// The hold window of one page on one host: longer while the page goes back and forth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HoldWindow {
    installed_at: Moment,
    level: u8,
}

impl HoldWindow {
    const fn window_us(self) -> u64 {
        WINDOW_FIRST_US << self.level
    }

    /// The page was installed; until when it is kept. `random` makes it a quarter shorter or longer, so that hosts get out of step.
    pub const fn installed(&mut self, now: Moment, random: u64) -> Moment {
        self.installed_at = now;
        let window = self.window_us();
        Moment(now.0.saturating_add(window - window / 4 + random % (window / 2)))
    }

    /// The page is taken away. Was that so soon that it bounces?
    pub const fn revoked(&mut self, now: Moment) -> bool {
        let kept = now.0.saturating_sub(self.installed_at.0);
        let window = self.window_us();
        if kept < BOUNCE_WINDOWS * window {
            if self.level < LEVEL_MAX {
                self.level += 1;
            }
            return true;
        }
        self.level = if kept >= CALM_WINDOWS * window { 0 } else { self.level.saturating_sub(1) };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Installed at 0 and taken away at `kept`, so often.
    fn bounced(times: usize, kept: u64) -> HoldWindow {
        let mut window = HoldWindow::default();
        for _ in 0..times {
            window.installed(Moment(0), 0);
            window.revoked(Moment(kept));
        }
        window
    }

    #[test]
    fn windows_are_random_around_their_length() {
        for times in 0..10 {
            let middle = WINDOW_FIRST_US << times.min(LEVEL_MAX.into());
            for random in (0..10_000).chain([u64::MAX]) {
                let until = bounced(times, 10).installed(Moment(1000), random).0 - 1000;
                assert!(until >= middle - middle / 4 && until <= middle + middle / 4, "{until} around {middle}");
            }
        }
    }

    #[test]
    fn what_bounces_is_kept_longer_and_what_rests_is_not() {
        assert_eq!(bounced(2, 10).window_us(), 4 * WINDOW_FIRST_US);
        let mut window = bounced(20, 10);
        assert_eq!(window.window_us(), WINDOW_FIRST_US << LEVEL_MAX);
        window.installed(Moment(0), 0);
        assert!(!window.revoked(Moment(5_000)));
        assert_eq!(window.window_us(), WINDOW_FIRST_US << (LEVEL_MAX - 1));
        window.installed(Moment(0), 0);
        assert!(!window.revoked(Moment(1_000_000)));
        assert_eq!(window.window_us(), WINDOW_FIRST_US);
    }

    #[test]
    fn the_end_of_time_is_no_panic() {
        let mut window = HoldWindow::default();
        assert_eq!(window.installed(Moment(u64::MAX), 7), Moment(u64::MAX));
        assert!(window.revoked(Moment(0)));
    }
}
