//! Faults, one after another, while clients work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use beamlog_log::SeededRandom;
use beamlog_log::sim_disk::{Crash, Failure, Fault, Operation, Repeat};
use beamlog_net::cluster::{Change, ChangeError, Member, MemberRole};
use beamlog_net::peer::PeerId;
use beamlog_net::runtime;

use super::World;
use crate::decay;
use crate::node::{SPINS, Slot};
use crate::note;
use crate::oracle::Violation;
use crate::trace::Trace;

/// How soon a process that stopped by itself is started again.
const SUPERVISE: Duration = Duration::from_millis(400);

/// What may happen next.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Happening {
    Partition,
    Crash,
    Pause,
    Freeze,
    Blackout,
    DiskError,
    Full,
    Rot,
    Replace,
    Transfer,
    Supervise,
    Heal,
    Restart(usize),
    Resume(usize),
    Room(usize),
    Renew(usize),
}

/// A node whose copy is not to be counted on. There is at most one, so that a quorum is intact.
pub(super) struct Impaired {
    pub(super) place: usize,
    /// Another node stands in its place, and is a voter.
    repaired: Option<Arc<AtomicBool>>,
}

impl World {
    pub(super) async fn safety(&mut self) -> Result<(), Violation> {
        let end = runtime::now() + self.scenario.safety;
        let mut plan: BTreeMap<(runtime::Moment, u64), Happening> = BTreeMap::new();
        let mut number = 0;
        let faults = self.scenario.faults.clone();
        let kinds = [
            (Happening::Partition, faults.partitions_every),
            (Happening::Crash, faults.crashes_every),
            (Happening::Pause, faults.pauses_every),
            (Happening::Freeze, faults.freezes_every),
            (Happening::Blackout, faults.blackouts_every),
            (Happening::DiskError, faults.disk_errors_every),
            (Happening::Full, faults.full_disks_every),
            (Happening::Rot, faults.rots_every),
            (Happening::Replace, faults.replacements_every),
            (Happening::Transfer, faults.transfers_every),
            (Happening::Supervise, Some(SUPERVISE)),
        ];
        for (kind, every) in kinds {
            if let Some(every) = every {
                number += 1;
                plan.insert((runtime::now() + self.about(every), number), kind);
            }
        }
        while let Some(((at, _), what)) = plan.pop_first() {
            if at >= end {
                break;
            }
            runtime::sleep_until(at).await;
            let then = self.happen(what)?;
            number += 1;
            if let Some((_, Some(every))) = kinds.iter().find(|(kind, _)| *kind == what) {
                plan.insert((runtime::now() + self.about(*every), number), what);
            }
            for (after, what) in then {
                number += 1;
                plan.insert((runtime::now() + after, number), what);
            }
            self.check_seen()?;
        }
        runtime::sleep_until(end).await;
        Ok(())
    }

    fn about(&mut self, mean: Duration) -> Duration {
        let micros = u64::try_from(mean.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(micros / 4 + self.random.below(3 * micros / 2 + 1))
    }

    /// Lets something happen. Says what follows from it.
    fn happen(&mut self, what: Happening) -> Result<Vec<(Duration, Happening)>, Violation> {
        let mut then = Vec::new();
        let count = self.places.len();
        match what {
            Happening::Partition => {
                self.partition();
                then.push((self.about(Duration::from_millis(1_500)), Happening::Heal));
            }
            Happening::Heal => {
                note!(self.around.trace, "the network is whole");
                self.around.network.heal_ways();
            }
            Happening::Crash => {
                let place = self.random.index(count);
                self.crash(place);
                then.push((self.about(Duration::from_millis(800)), Happening::Restart(place)));
            }
            Happening::Blackout => {
                note!(self.around.trace, "power cut");
                for place in 0..count {
                    self.crash(place);
                    then.push((self.about(Duration::from_millis(500)), Happening::Restart(place)));
                }
            }
            Happening::Restart(place) => {
                if !self.places[place].is_alive() {
                    self.start(place);
                }
            }
            Happening::Pause | Happening::Freeze => {
                let place = self.random.index(count);
                note!(self.around.trace, "n{place} stands still: {what:?}");
                self.around.network.pause(self.places[place].peer, true);
                if what == Happening::Freeze
                    && let Some(machine) = self.places[place].machine()
                {
                    self.around.simulation.freeze(machine);
                }
                then.push((self.about(Duration::from_millis(1_500)), Happening::Resume(place)));
            }
            Happening::Resume(place) => self.resume(place),
            Happening::DiskError => self.disk_error(),
            Happening::Full => {
                let place = self.random.index(count);
                let room = self.disk_random.below(16 << 10);
                note!(self.around.trace, "the disk of n{place} has {room} bytes left");
                let disk = &self.places[place].disk;
                disk.limit_space(disk.used_space() + room);
                self.places[place].excused = true;
                then.push((self.about(Duration::from_millis(2_000)), Happening::Room(place)));
            }
            Happening::Room(place) => {
                note!(self.around.trace, "the disk of n{place} has room");
                self.places[place].disk.heal();
            }
            Happening::Rot => {
                if let Some(place) = self.impair() {
                    let what = decay::rot(&self.places[place].disk, &mut self.disk_random);
                    note!(self.around.trace, "the disk of n{place} decays: {what}");
                    self.places[place].rotten = true;
                    if self.disk_random.one_in(2) {
                        // Found when it starts, and not while it runs.
                        self.crash(place);
                        self.places[place].rotten = true;
                        then.push((self.about(Duration::from_millis(300)), Happening::Restart(place)));
                    }
                    then.push((self.about(Duration::from_millis(2_500)), Happening::Renew(place)));
                }
            }
            Happening::Replace => {
                if let Some(place) = self.impair() {
                    self.renew(place);
                }
            }
            Happening::Renew(place) => self.renew(place),
            Happening::Transfer => self.transfer(),
            Happening::Supervise => self.revive()?,
        }
        Ok(then)
    }

    pub(super) fn resume(&mut self, place: usize) {
        note!(self.around.trace, "n{place} goes on");
        self.around.network.pause(self.places[place].peer, false);
        if let Some(machine) = self.places[place].machine() {
            self.around.simulation.thaw(machine);
        }
    }

    fn disk_error(&mut self) {
        let place = self.random.index(self.places.len());
        let random = &mut self.disk_random;
        let kinds = [
            Operation::SyncData,
            Operation::SyncData,
            Operation::Write,
            Operation::SyncDir,
            Operation::Create,
        ];
        let failures = [Failure::Io, Failure::PartialIo, Failure::NoSpace];
        let fault = Fault {
            operation: Some(kinds[random.index(kinds.len())]),
            nth: 1 + random.below(20),
            failure: failures[random.index(failures.len())],
            repeat: Repeat::Once,
        };
        note!(self.around.trace, "the disk of n{place} will fail: {fault:?}");
        self.places[place].excused = true;
        self.places[place].disk.fail(fault);
    }

    /// A place whose copy may be lost now.
    fn impair(&mut self) -> Option<usize> {
        let repaired =
            |impaired: &Impaired| impaired.repaired.as_ref().is_some_and(|done| done.load(Ordering::Relaxed));
        if self.impaired.as_ref().is_some_and(|impaired| !repaired(impaired)) {
            return None;
        }
        let place = self.random.index(self.places.len());
        self.impaired = Some(Impaired { place, repaired: None });
        Some(place)
    }

    /// Whether the copy of a place was lost, and nobody is on the way to replace it.
    pub(super) fn wants_renewal(&self) -> Option<usize> {
        self.impaired.as_ref().filter(|impaired| impaired.repaired.is_none()).map(|impaired| impaired.place)
    }

    /// A new node with an empty disk comes in the place of another, and the cluster is told to replace that by it.
    pub(super) fn renew(&mut self, place: usize) {
        self.crash(place);
        let old = self.places[place].replace();
        self.places[place].rotten = false;
        self.replaced += 1;
        note!(self.around.trace, "n{place} gets an empty disk");
        self.start(place);
        let repaired = Arc::new(AtomicBool::new(false));
        self.impaired = Some(Impaired { place, repaired: Some(Arc::clone(&repaired)) });
        let (new, member) = (self.places[place].peer, self.places[place].member());
        let replacement = Replacement { old, new, member, place };
        let slots = self.places.iter().map(super::Place::slot).collect();
        let random = SeededRandom::new(self.random.next());
        drop(runtime::spawn(replacement.make(slots, random, repaired, Arc::clone(&self.around.trace))));
    }

    /// Starts what stopped by itself. Without a fault of its disk no process does.
    pub(super) fn revive(&mut self) -> Result<(), Violation> {
        for place in 0..self.places.len() {
            let Some(reason) = self.places[place].failure() else { continue };
            note!(self.around.trace, "n{place} has stopped: {reason}");
            let counted = reason.contains("is said to be committed");
            let node = &self.places[place];
            if counted || reason == SPINS || !(node.excused || node.rotten) {
                return Err(Violation::Other(format!("n{place} stopped by itself: {reason}")));
            }
            self.crash(place);
            self.start(place);
        }
        Ok(())
    }

    fn transfer(&mut self) {
        let to = self.random.index(self.places.len());
        let peer = self.places[to].peer;
        let cluster = self.places[self.random.index(self.places.len())].shown().cluster.clone();
        let Some(cluster) = cluster else { return };
        let trace = Arc::clone(&self.around.trace);
        note!(trace, "leadership is to go to n{to}");
        drop(runtime::spawn(async move {
            let done = cluster.change(Change::Transfer { to: Some(peer) }).await;
            note!(trace, "leadership to n{to}: {done:?}");
        }));
    }

    fn partition(&mut self) {
        let peers: Vec<_> = self.places.iter().map(|place| place.peer).collect();
        let network = self.around.network.clone();
        match self.random.below(4) {
            // One node is alone.
            0 => {
                let alone = self.random.index(peers.len());
                note!(self.around.trace, "n{alone} is cut off");
                for (at, peer) in peers.iter().enumerate() {
                    if at != alone {
                        network.cut(peers[alone], *peer);
                        network.cut(*peer, peers[alone]);
                    }
                }
            }
            // One way only.
            1 => {
                let from = self.random.index(peers.len());
                note!(self.around.trace, "n{from} is not heard");
                for (at, peer) in peers.iter().enumerate() {
                    if at != from {
                        network.cut(peers[from], *peer);
                    }
                }
            }
            // Some ways, by chance.
            2 => {
                note!(self.around.trace, "ways are cut by chance");
                for from in &peers {
                    for to in &peers {
                        if from != to && self.random.one_in(3) {
                            network.cut(*from, *to);
                        }
                    }
                }
            }
            // Two halves.
            _ => {
                let mut order: Vec<usize> = (0..peers.len()).collect();
                self.random.shuffle(&mut order);
                let (few, many) = order.split_at(peers.len() / 2);
                note!(self.around.trace, "{few:?} and {many:?} are apart");
                for one in few {
                    for other in many {
                        network.cut(peers[*one], peers[*other]);
                        network.cut(peers[*other], peers[*one]);
                    }
                }
            }
        }
    }

    fn crash(&mut self, place: usize) {
        let crashes = Crash::sample(self.disk_random.next());
        // A killed process leaves what it wrote to the system; a power cut leaves what was synced, more or less.
        let crash = if self.disk_random.one_in(2) {
            Crash::KeepUnsynced
        } else {
            crashes[self.disk_random.index(crashes.len())]
        };
        if self.places[place].is_alive() {
            self.crashes += 1;
        }
        let around = self.around.clone();
        self.places[place].die(&around, crash);
        self.places[place].disk.heal();
        self.places[place].excused = false;
    }
}

/// One node in the place of another.
struct Replacement {
    old: PeerId,
    new: PeerId,
    member: Member,
    place: usize,
}

impl Replacement {
    /// Asks one node after another until it is made.
    async fn make(
        self,
        slots: Vec<Slot>,
        mut random: SeededRandom,
        done: Arc<AtomicBool>,
        trace: Arc<Trace>,
    ) {
        let Self { old, new, member, place } = self;
        loop {
            runtime::sleep(Duration::from_millis(100)).await;
            let through = random.index(slots.len());
            let cluster =
                slots[through].lock().unwrap_or_else(std::sync::PoisonError::into_inner).cluster.clone();
            let Some(cluster) = cluster.filter(|_| through != place) else { continue };
            let status = cluster.status();
            let members = status.members;
            let votes = members.iter().any(|member| member.id == new && member.role == MemberRole::Voter);
            let change = if votes && !status.changing && members.iter().all(|member| member.id != old) {
                // As this one sees it, which may be behind: nobody else takes that back.
                note!(trace, "n{place} has been replaced");
                done.store(true, Ordering::Relaxed);
                return;
            } else if votes {
                Change::Remove { id: old }
            } else {
                Change::Replace { old, new, member: member.clone() }
            };
            let made = runtime::timeout(Duration::from_secs(3), Box::pin(cluster.change(change))).await;
            if let Ok(Err(ChangeError::Refused(reason))) = &made {
                note!(trace, "replacing n{place} through n{through} is refused: {reason}");
            }
        }
    }
}
