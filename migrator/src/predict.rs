//! What will a move cost that has not begun? For whoever plans moves: the same rules as [`crate::forecast`], about a survey as the move
//! itself would take it, made from what is known of guest and path. Pure.

use crate::{dirty_curve::DirtyCurve, forecast::Basis};
use vmotion_model::{Accuracy, Forecast, MoveRequest, PAGE_SIZE, Survey};

/// How long a move measures before it is foreseen, in ms.
const MEASURED_MS: f64 = 400.0;
/// Round trips before the first page: the session, and what both ends compare.
const ROUND_TRIPS_BEFORE: f64 = 3.0;

/// What is known of a guest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GuestProfile {
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// Part of its pages that hold only zeros, from 0 to 1.
    pub zero_share: f64,
    /// Bytes that a page which is not zero takes on the wire; 0 when nobody knows, which counts as a whole page.
    pub bytes_per_page: f64,
    /// Different pages that it writes, each second.
    pub dirty_pages_per_s: f64,
    /// Pages among which it writes; 0 when nobody knows, which counts as all.
    pub working_set_pages: f64,
    /// Its vCPUs.
    pub vcpus: u32,
}

/// What is known of the way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathProfile {
    /// What it carries of this move, in bytes/s.
    pub bytes_per_s: f64,
    /// Round trip, in ms.
    pub rtt_ms: f64,
    /// Pages that both ends copy at most, each second.
    pub pages_per_s_max: f64,
}

/// What the move that `request` asks for would come to, by the strategy it names.
#[must_use]
pub fn predict(guest: &GuestProfile, path: &PathProfile, request: &MoveRequest, accuracy: &Accuracy) -> Forecast {
    let whole_page = PAGE_SIZE as f64;
    let pages = guest.memory_bytes.div_ceil(PAGE_SIZE).max(1);
    let bytes_per_page = if guest.bytes_per_page > 0.0 { guest.bytes_per_page.min(whole_page) } else { whole_page };
    let zero_share = guest.zero_share.clamp(0.0, 1.0);
    let pages_per_s = (path.bytes_per_s / bytes_per_page).min(path.pages_per_s_max).max(1.0);
    let non_zero = pages as f64 * (1.0 - zero_share);
    let round_ms = non_zero / pages_per_s * 1000.0;
    let measured_ms = round_ms.min(MEASURED_MS);
    let left = if round_ms > 0.0 { (1.0 - measured_ms / round_ms) * pages as f64 } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pages, positive and at most all")]
    let pages_left = (left as u64).min(pages);
    let set = if guest.working_set_pages > 0.0 { guest.working_set_pages.min(pages as f64) } else { pages as f64 };
    let curve = DirtyCurve::random(guest.dirty_pages_per_s.max(0.0) / 1000.0, set.max(1.0));
    let basis = Basis {
        survey: Survey {
            elapsed_ms: measured_ms + path.rtt_ms * ROUND_TRIPS_BEFORE,
            pages_left,
            zero_share,
            bytes_per_page,
            pages_per_s,
            rtt_ms: path.rtt_ms,
            dirty_curve: Vec::new(),
            dirty_pages_per_s: guest.dirty_pages_per_s,
            working_set_pages: set,
        },
        curve,
        round_elapsed_ms: measured_ms,
        round_pages: pages,
        sent_bytes: (pages - pages_left) as f64 * (1.0 - zero_share) * bytes_per_page,
        cpus: guest.vcpus,
        follows: true,
        accuracy: *accuracy,
    };
    basis.forecast(request.strategy, request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmotion_model::Strategy;

    const GUEST: GuestProfile = GuestProfile {
        memory_bytes: 1 << 30,
        zero_share: 0.25,
        bytes_per_page: 4096.0,
        dirty_pages_per_s: 2560.0,
        working_set_pages: 65_536.0,
        vcpus: 2,
    };
    const PATH: PathProfile = PathProfile { bytes_per_s: 100e6, rtt_ms: 1.0, pages_per_s_max: 300_000.0 };

    fn of(guest: GuestProfile, path: PathProfile) -> Forecast {
        predict(&guest, &path, &MoveRequest::default(), &Accuracy::default())
    }

    #[test]
    fn a_quiet_guest_takes_its_memory_over_the_bandwidth() {
        let forecast = of(GuestProfile { dirty_pages_per_s: 0.0, ..GUEST }, PATH);
        let bytes = 0.75 * f64::from(1 << 30);
        assert!((forecast.wire_bytes.likely / bytes - 1.0).abs() < 0.01, "{forecast:?}");
        assert!((forecast.total_ms.likely / (bytes / 100e6 * 1000.0) - 1.0).abs() < 0.05, "{forecast:?}");
        assert!(forecast.downtime_ms.likely < 20.0 && forecast.refused.is_none(), "{forecast:?}");
    }

    #[test]
    fn writing_costs_bytes_and_time_and_more_so_on_a_slower_path() {
        let quiet = of(GuestProfile { dirty_pages_per_s: 0.0, ..GUEST }, PATH);
        let (fast, slow) = (of(GUEST, PATH), of(GUEST, PathProfile { bytes_per_s: 25e6, ..PATH }));
        assert!(fast.wire_bytes.likely > quiet.wire_bytes.likely * 1.05, "{fast:?}");
        assert!(slow.wire_bytes.likely > fast.wire_bytes.likely, "{slow:?}");
        assert!(slow.total_ms.likely > 4.0 * fast.total_ms.likely, "{slow:?}");
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_path_carries_is_handed_over_or_refused() {
        let guest = GuestProfile { dirty_pages_per_s: 60_000.0, working_set_pages: 200_000.0, ..GUEST };
        let handed_over = of(guest, PATH);
        assert!(handed_over.refused.is_none() && handed_over.slowdown_percent.likely > 0.0, "{handed_over:?}");
        let request = MoveRequest { strategy: Strategy::Precopy, ..MoveRequest::default() };
        assert!(predict(&guest, &PATH, &request, &Accuracy::default()).refused.is_some());
    }

    #[test]
    fn unknown_numbers_count_as_the_worst() {
        let unknown = GuestProfile { bytes_per_page: 0.0, working_set_pages: 0.0, zero_share: 0.0, ..GUEST };
        assert!(of(unknown, PATH).wire_bytes.likely >= of(GUEST, PATH).wire_bytes.likely);
        let nothing = GuestProfile { memory_bytes: 0, ..GUEST };
        assert!(of(nothing, PATH).total_ms.likely.is_finite());
    }
}
