//! The steps that change where the pieces of a machine are. Pure.

use vmotion_model::{HostName, Piece, PieceName, Step};

/// The steps from where pieces are to where they are wanted; pieces that nobody names stay. Hosts join before pieces go to them, and hosts
/// without pieces leave in the end, except the `hub`: the devices are there.
pub(crate) fn plan(now: &[Piece], members: &[HostName], hub: &HostName, wanted: &[(PieceName, HostName)]) -> Vec<Step> {
    let goal = |piece: &Piece| {
        wanted.iter().find(|(name, _)| *name == piece.name).map_or_else(|| piece.host.clone(), |(_, to)| to.clone())
    };
    let mut joins: Vec<Step> = Vec::new();
    let mut moves = Vec::new();
    for piece in now {
        let (from, to) = (piece.host.clone(), goal(piece));
        if from == to {
            continue;
        }
        let join = Step::Join { host: to.clone() };
        if !members.contains(&to) && !joins.contains(&join) {
            joins.push(join);
        }
        moves.push(Step::Move { piece: piece.name, from, to });
    }
    let leaves = members.iter().filter(|host| *host != hub && !now.iter().any(|piece| goal(piece) == **host));
    let leaves = leaves.map(|host| Step::Leave { host: host.clone() });
    joins.into_iter().chain(moves).chain(leaves).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use vmotion_model::Epoch;

    fn host(number: usize) -> HostName {
        format!("h{number}").parse().unwrap()
    }

    fn pieces(vcpus: &[usize], slices: &[usize]) -> Vec<Piece> {
        let piece = |name, at: &usize| Piece { name, host: host(*at), epoch: Epoch::FIRST };
        let vcpu = (0u8..).zip(vcpus).map(|(number, at)| piece(PieceName::Vcpu(number), at));
        let slice = (0u8..).zip(slices).map(|(number, at)| piece(PieceName::Memory(number), at));
        vcpu.chain(slice).collect()
    }

    fn words(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_piece_takes_its_new_host_in_and_leaves_no_empty_one_behind() {
        let now = pieces(&[0, 1], &[0]);
        let steps = plan(&now, &[host(0), host(1)], &host(0), &[(PieceName::Vcpu(1), host(2))]);
        assert_eq!(words(&steps), ["h2 joins", "vcpu1 goes from h1 to h2", "h1 leaves"]);
    }

    #[test]
    fn the_host_with_the_devices_stays() {
        let now = pieces(&[0, 0], &[0]);
        let all = |to| now.iter().map(|piece| (piece.name, host(to))).collect::<Vec<_>>();
        let steps = plan(&now, &[host(0), host(1)], &host(0), &all(1));
        assert_eq!(steps.len(), 3, "{:?}", words(&steps));
        assert_eq!(plan(&now, &[host(0)], &host(0), &all(0)), []);
    }

    #[test]
    fn nothing_wanted_is_how_empty_hosts_are_sent_away() {
        let now = pieces(&[0, 2], &[0, 2]);
        let steps = plan(&now, &[host(0), host(1), host(2), host(3)], &host(0), &[]);
        assert_eq!(words(&steps), ["h1 leaves", "h3 leaves"]);
    }

    proptest! {
        #[test]
        fn steps_that_are_carried_out_lead_to_what_was_wanted_and_each_of_them_is_possible(
            vcpus in prop::collection::vec(0usize..4, 1..6),
            slices in prop::collection::vec(0usize..4, 1..4),
            wanted in prop::collection::vec(0usize..6, 0..8),
        ) {
            let mut now = pieces(&vcpus, &slices);
            let wanted: Vec<(PieceName, HostName)> =
                now.iter().zip(&wanted).map(|(piece, to)| (piece.name, host(*to))).collect();
            let mut members: BTreeSet<HostName> = (0..4).map(host).collect();
            let steps = plan(&now, &members.iter().cloned().collect::<Vec<_>>(), &host(0), &wanted);
            for step in steps {
                match step {
                    Step::Join { host } => prop_assert!(members.insert(host)),
                    Step::Move { piece, from, to } => {
                        prop_assert!(members.contains(&to));
                        let piece = now.iter_mut().find(|known| known.name == piece).unwrap();
                        prop_assert_eq!(&piece.host, &from);
                        piece.host = to;
                    }
                    Step::Leave { host: gone } => {
                        prop_assert!(gone != host(0) && now.iter().all(|piece| piece.host != gone));
                        prop_assert!(members.remove(&gone));
                    }
                }
            }
            for (name, to) in &wanted {
                prop_assert!(now.iter().any(|piece| piece.name == *name && piece.host == *to));
            }
            prop_assert!(members.iter().all(|member| *member == host(0) || now.iter().any(|piece| piece.host == *member)));
        }
    }
}
