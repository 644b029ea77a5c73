//! What must always be so.

use super::World;
use crate::directory::{Access, Copies, ShardNumber};

impl World {
    pub(super) fn check(&mut self, page: usize) {
        let spots = self.hosts.iter().map(|host| &host.spots[page]);
        let mapped = spots.clone().filter(|spot| spot.mapped.is_some()).count();
        let written = spots.clone().filter(|spot| spot.mapped == Some(Access::Write)).count();
        let stale = spots.clone().any(|spot| spot.mapped.is_some() && spot.frame != self.latest[page]);
        // While the driver is at it the mapping is on its way to what the holder says.
        let settled = spots.filter(|spot| spot.holder.is_settled() && spot.todo.is_empty());
        let overdone =
            settled.into_iter().any(|spot| spot.mapped.is_some_and(|access| spot.holder.rights() < access.into()));
        if written > 1 || written == 1 && mapped > 1 {
            self.fail(|| format!("page {page}: {written} may write and {mapped} may read"));
        }
        if overdone {
            self.fail(|| format!("page {page}: mapped more than the holder knows"));
        }
        if stale {
            self.fail(|| format!("page {page}: a guest can see what is not the newest"));
        }
        let number = self.number(page);
        for at in 0..self.hosts.len() {
            let Some(home) = self.hosts[at].homes.home(number) else { continue };
            let on_fenced = matches!(home.entry().copies, Copies::Owned(owner) if self.hosts[owner.index()].fenced);
            let queued = home.queued();
            if on_fenced && !self.hosts[at].fenced {
                self.fail(|| format!("page {page} is modified on a fenced host"));
            }
            if queued > self.hosts.len() {
                self.fail(|| format!("page {page}: {queued} requests wait"));
            }
        }
    }

    pub(super) fn check_homes(&mut self, shard: ShardNumber) {
        let homes = self.hosts.iter().filter(|host| host.homes.serves(shard).is_some()).count();
        if homes > 1 {
            self.fail(|| format!("{shard} is served by {homes} hosts"));
        }
    }

    /// With nothing left to happen: has everybody got what he asked for?
    pub(in crate::directory) fn is_satisfied(&self) -> bool {
        self.hosts.iter().filter(|host| !host.fenced).all(|host| {
            let spots = host.spots.iter().all(|spot| spot.waits.is_none() && spot.holder.is_settled());
            let homes = (0..self.pages()).filter_map(|page| host.homes.home(self.number(page)));
            spots && homes.into_iter().all(|home| home.is_idle() && home.queued() == 0)
        })
    }
}
