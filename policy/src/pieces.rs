//! Move the vCPU or the page? Who shares with whom on a machine that spans several hosts, and which pieces should be elsewhere.
//!
//! A vCPU that waits again and again for a page shares it: with the vCPUs elsewhere that wait for the same page. Together on one host they
//! would wait no more, so a vCPU is drawn to where its partners are. A slice of memory is drawn to where most of the waits for its
//! pages come from: with the home there, each of them saves a trip. A vCPU is some thousand bytes and a slice many pages, so vCPUs come first.
//!
//! Nothing is advised that overloads a host, or that would be advised back by the same numbers: each advice is judged as if those
//! before it had been followed.

use std::collections::{BTreeMap, BTreeSet};
use vmotion_model::{Advice, HostName, HotPage, Piece, PieceName, Sharing};

/// Waits a second below which nothing is advised: a move costs more than that.
const WORTH_PER_S: f64 = 20.0;
/// A piece is drawn away only by so many times what would keep it, so that it does not go back with the next noise.
const STRONGER: f64 = 1.5;
/// Pieces advised at a time: after these everything looks different.
const ADVICE_MAX: usize = 8;
/// Hot pages shown.
const HOTTEST_MAX: usize = 10;
/// Pairs shown.
const SHARING_MAX: usize = 10;

/// What a machine does over its hosts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Picture {
    /// Its pieces.
    pub pieces: Vec<Piece>,
    /// Its hosts, and how many processors each has.
    pub processors: BTreeMap<HostName, u32>,
    /// How often a second each vCPU waits for which page.
    pub waits: Vec<Waits>,
}

/// What a vCPU waits for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Waits {
    /// Which vCPU.
    pub vcpu: u8,
    /// All its waits, each second.
    pub per_s: f64,
    /// Its hottest pages: number, slice of memory, and waits each second.
    pub pages: Vec<(u64, u8, f64)>,
}

/// What follows from a picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Insight {
    /// All waits, each second.
    pub per_s: f64,
    /// The hottest pages, hottest first.
    pub hottest: Vec<HotPage>,
    /// Who shares with whom, most first.
    pub sharing: Vec<Sharing>,
    /// Which pieces should be elsewhere, the most useful first.
    pub advice: Vec<Advice>,
}

/// Looks at a machine. Pure; the same picture gives the same insight.
#[must_use]
pub fn look(picture: &Picture) -> Insight {
    let shared = shared(picture);
    let mut sharing: Vec<Sharing> = shared
        .iter()
        .map(|((one, other), per_s)| Sharing {
            one: PieceName::Vcpu(*one),
            other: PieceName::Vcpu(*other),
            faults_per_s: *per_s,
        })
        .collect();
    sharing.sort_by(|a, b| b.faults_per_s.total_cmp(&a.faults_per_s).then((a.one, a.other).cmp(&(b.one, b.other))));
    sharing.truncate(SHARING_MAX);
    Insight {
        // The sum of nothing is -0, which people would wonder about.
        per_s: picture.waits.iter().map(|waits| waits.per_s).fold(0.0, |sum, per_s| sum + per_s),
        hottest: hottest(picture),
        sharing,
        advice: advise(picture, &shared),
    }
}

/// By pair of vCPUs, the lower number first: waits a second for pages that both wait for.
fn shared(picture: &Picture) -> BTreeMap<(u8, u8), f64> {
    let mut by_page: BTreeMap<u64, Vec<(u8, f64)>> = BTreeMap::new();
    for Waits { vcpu, pages, .. } in &picture.waits {
        for (page, _, per_s) in pages {
            by_page.entry(*page).or_default().push((*vcpu, *per_s));
        }
    }
    let mut shared = BTreeMap::new();
    for users in by_page.values() {
        for (at, (one, waits)) in users.iter().enumerate() {
            for (other, others) in &users[at + 1..] {
                // A page goes to and fro between the two as often as the one that waits less does.
                *shared.entry(((*one).min(*other), (*one).max(*other))).or_insert(0.0) += waits.min(*others);
            }
        }
    }
    shared
}

fn hottest(picture: &Picture) -> Vec<HotPage> {
    let mut pages: BTreeMap<u64, HotPage> = BTreeMap::new();
    for Waits { vcpu, pages: waited, .. } in &picture.waits {
        for (page, slice, per_s) in waited {
            let cold = HotPage { page: *page, slice: PieceName::Memory(*slice), faults_per_s: 0.0, vcpus: Vec::new() };
            let hot = pages.entry(*page).or_insert(cold);
            hot.faults_per_s += per_s;
            hot.vcpus.push(*vcpu);
        }
    }
    let mut hottest: Vec<HotPage> = pages.into_values().collect();
    hottest.sort_by(|a, b| b.faults_per_s.total_cmp(&a.faults_per_s).then(a.page.cmp(&b.page)));
    hottest.truncate(HOTTEST_MAX);
    hottest
}

/// Where pieces are while advice is given.
struct Plan<'a> {
    picture: &'a Picture,
    shared: &'a BTreeMap<(u8, u8), f64>,
    at: BTreeMap<PieceName, HostName>,
    advised: BTreeSet<PieceName>,
}

fn advise(picture: &Picture, shared: &BTreeMap<(u8, u8), f64>) -> Vec<Advice> {
    let at = picture.pieces.iter().map(|piece| (piece.name, piece.host.clone())).collect();
    let mut plan = Plan { picture, shared, at, advised: BTreeSet::new() };
    let mut advice: Vec<Advice> = Vec::new();
    while advice.len() < ADVICE_MAX {
        let Some(next) = plan.best() else { break };
        plan.at.insert(next.piece, next.to.clone());
        plan.advised.insert(next.piece);
        advice.push(next);
    }
    advice
}

impl Plan<'_> {
    /// The most useful move of a vCPU; of a slice when there is none.
    fn best(&self) -> Option<Advice> {
        let pieces = self.at.keys().copied().filter(|piece| !self.advised.contains(piece));
        let (vcpus, slices): (Vec<PieceName>, Vec<PieceName>) =
            pieces.partition(|piece| matches!(piece, PieceName::Vcpu(_)));
        let vcpus_advised = self.advised.iter().any(|piece| matches!(piece, PieceName::Vcpu(_)));
        let vcpu = vcpus.into_iter().filter_map(|piece| self.vcpu(piece));
        let best = |moves: Vec<Advice>| {
            moves.into_iter().max_by(|a, b| a.saves_per_s.total_cmp(&b.saves_per_s).then(b.piece.cmp(&a.piece)))
        };
        // Where vCPUs should go first, the waits for memory will be others.
        let slices = if vcpus_advised { Vec::new() } else { slices };
        best(vcpu.collect()).or_else(|| best(slices.into_iter().filter_map(|piece| self.slice(piece)).collect()))
    }

    fn vcpus_on(&self, host: &HostName) -> u32 {
        let here = self.at.iter().filter(|(piece, at)| matches!(piece, PieceName::Vcpu(_)) && *at == host);
        u32::try_from(here.count()).unwrap_or(u32::MAX)
    }

    /// One more vCPU on `to` that comes from `from`: has each of them a processor, or is it no more crowded than before?
    fn has_room(&self, from: &HostName, to: &HostName) -> bool {
        let crowd = |host, more| {
            let processors = self.picture.processors.get(host).copied().unwrap_or(0).max(1);
            f64::from(self.vcpus_on(host) + more) / f64::from(processors)
        };
        crowd(to, 1) <= 1.0 || crowd(to, 1) <= crowd(from, 0)
    }

    fn vcpu(&self, piece: PieceName) -> Option<Advice> {
        let PieceName::Vcpu(vcpu) = piece else { return None };
        let from = self.at.get(&piece)?;
        let mut pulls: BTreeMap<&HostName, (f64, Vec<u8>)> = BTreeMap::new();
        for ((one, other), per_s) in self.shared {
            let partner = match vcpu {
                _ if *one == vcpu => *other,
                _ if *other == vcpu => *one,
                _ => continue,
            };
            let pull = pulls.entry(self.at.get(&PieceName::Vcpu(partner))?).or_default();
            pull.0 += per_s;
            pull.1.push(partner);
        }
        let held = pulls.get(from).map_or(0.0, |(per_s, _)| *per_s);
        let (to, (per_s, partners)) = pulls
            .iter()
            .filter(|(host, _)| **host != from)
            .max_by(|(a, (pull, _)), (b, (other, _))| pull.total_cmp(other).then_with(|| b.cmp(a)))?;
        if *per_s < WORTH_PER_S || *per_s < held * STRONGER || !self.has_room(from, to) {
            return None;
        }
        let partners = partners.iter().map(|vcpu| format!("vcpu{vcpu}")).collect::<Vec<_>>().join(", ");
        let kept = if held > 0.0 { format!(", {held:.0} with those on {from}") } else { String::new() };
        let why = format!("it shares {per_s:.0} waits a second with {partners} on {to}{kept}");
        Some(Advice { piece, from: from.clone(), to: (*to).clone(), saves_per_s: per_s - held, why })
    }

    fn slice(&self, piece: PieceName) -> Option<Advice> {
        let PieceName::Memory(slice) = piece else { return None };
        let from = self.at.get(&piece)?;
        let mut by_host: BTreeMap<&HostName, f64> = BTreeMap::new();
        for Waits { vcpu, pages, .. } in &self.picture.waits {
            let host = self.at.get(&PieceName::Vcpu(*vcpu))?;
            let per_s: f64 = pages.iter().filter(|(_, of, _)| *of == slice).map(|(_, _, per_s)| per_s).sum();
            *by_host.entry(host).or_default() += per_s;
        }
        let held = by_host.get(from).copied().unwrap_or(0.0);
        let (to, per_s) = by_host
            .iter()
            .filter(|(host, _)| **host != from)
            .max_by(|(a, pull), (b, other)| pull.total_cmp(other).then_with(|| b.cmp(a)))?;
        if *per_s < WORTH_PER_S || *per_s < held * STRONGER {
            return None;
        }
        let why = format!("{per_s:.0} waits a second for its pages are on {to}, {held:.0} on {from}");
        Some(Advice { piece, from: from.clone(), to: (*to).clone(), saves_per_s: per_s - held, why })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;
    use proptest::prelude::*;
    use vmotion_model::Epoch;

    fn host(number: usize) -> HostName {
        format!("h{number}").parse().unwrap()
    }

    fn picture(processors: &[u32], vcpus: &[usize], slices: &[usize], waits: &[(u8, u64, u8, f64)]) -> Picture {
        let piece = |name, at: &usize| Piece { name, host: host(*at), epoch: Epoch::FIRST };
        let vcpu = (0u8..).zip(vcpus).map(|(number, at)| piece(PieceName::Vcpu(number), at));
        let slice = (0u8..).zip(slices).map(|(number, at)| piece(PieceName::Memory(number), at));
        let of = |vcpu: u8| {
            let pages: Vec<_> = waits.iter().filter(|(of, ..)| *of == vcpu).map(|(_, p, s, n)| (*p, *s, *n)).collect();
            Waits { vcpu, per_s: pages.iter().map(|(_, _, per_s)| per_s).sum(), pages }
        };
        Picture {
            pieces: vcpu.chain(slice).collect(),
            processors: processors.iter().enumerate().map(|(at, count)| (host(at), *count)).collect(),
            waits: (0..u8::try_from(vcpus.len()).unwrap()).map(of).collect(),
        }
    }

    fn moves(insight: &Insight) -> Vec<String> {
        insight.advice.iter().map(|advice| format!("{} {} {}", advice.piece, advice.from, advice.to)).collect()
    }

    #[test]
    fn two_that_share_a_page_come_together_once() {
        let seen = look(&picture(&[4, 4], &[0, 1], &[0], &[(0, 9, 0, 500.0), (1, 9, 0, 480.0)]));
        assert_eq!(moves(&seen), ["vcpu0 h0 h1"]);
        assert_eq!(seen.advice[0].why, "it shares 480 waits a second with vcpu1 on h1");
        assert_eq!(seen.sharing.len(), 1);
        assert!((seen.sharing[0].faults_per_s - 480.0).abs() < 1e-9 && (seen.per_s - 980.0).abs() < 1e-9);
        assert_eq!((seen.hottest[0].page, seen.hottest[0].vcpus.as_slice()), (9, &[0, 1][..]));
    }

    #[test]
    fn a_vcpu_does_not_go_where_it_has_no_processor() {
        let waits = [(0, 9, 0, 500.0), (1, 9, 0, 500.0)];
        // Both are full, and as crowded as each other.
        assert_eq!(moves(&look(&picture(&[1, 1], &[0, 1], &[], &waits))), [""; 0]);
        assert_eq!(moves(&look(&picture(&[1, 2], &[0, 1], &[], &waits))), ["vcpu0 h0 h1"]);
        assert_eq!(moves(&look(&picture(&[2, 1], &[0, 1], &[], &waits))), ["vcpu1 h1 h0"]);
    }

    #[test]
    fn memory_goes_to_who_waits_for_it_when_no_vcpu_should_move() {
        let seen = look(&picture(&[2, 2], &[0, 1], &[0, 1], &[(0, 3, 1, 300.0), (1, 700, 1, 30.0)]));
        assert_eq!(moves(&seen), ["mem1 h1 h0"]);
        assert_eq!(seen.advice[0].why, "300 waits a second for its pages are on h0, 30 on h1");
    }

    #[test]
    fn a_few_waits_are_no_reason() {
        let seen = look(&picture(&[4, 4], &[0, 1], &[0, 1], &[(0, 3, 1, 12.0), (1, 3, 1, 15.0)]));
        assert_eq!(moves(&seen), [""; 0]);
    }

    proptest! {
        /// What was advised once is not taken back by the same waits, and no host gets crowded by it.
        #[test]
        fn advice_that_is_followed_comes_to_rest(
            processors in prop::collection::vec(1u32..5, 2..4),
            vcpus in prop::collection::vec(0usize..8, 1..9),
            slices in prop::collection::vec(0usize..8, 0..4),
            waits in prop::collection::vec((0u8..8, 0u64..6, 0u8..4, 0.0..1000.0f64), 0..40),
        ) {
            let hosts = processors.len();
            let on = |places: &[usize]| places.iter().map(|at| at % hosts).collect::<Vec<_>>();
            let mut now = picture(&processors, &on(&vcpus), &on(&slices), &waits);
            let crowd = |picture: &Picture| {
                let on = |host: &HostName| picture.pieces.iter().filter(|piece| {
                    matches!(piece.name, PieceName::Vcpu(_)) && piece.host == *host
                }).count();
                picture.processors.iter().map(|(host, count)| on(host) as f64 / f64::from(*count)).fold(1.0, f64::max)
            };
            for _ in 0..20 {
                let before = crowd(&now);
                let seen = look(&now);
                for advice in &seen.advice {
                    prop_assert!(advice.from != advice.to && advice.saves_per_s > 0.0);
                    let piece = now.pieces.iter_mut().find(|piece| piece.name == advice.piece).unwrap();
                    prop_assert_eq!(&piece.host, &advice.from);
                    piece.host = advice.to.clone();
                }
                prop_assert!(crowd(&now) <= before + 1e-9);
                if seen.advice.is_empty() {
                    return Ok(());
                }
            }
            prop_assert!(false, "pieces go round and round");
        }
    }
}
