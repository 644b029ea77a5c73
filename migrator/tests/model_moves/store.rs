//! An owner store that fails as scheduled.

use super::witness::Side;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use vmotion_migrator::ownership::{CasOutcome, OwnerStore, StoreUnreachable, decide};
use vmotion_model::{HostName, OwnerRecord};

/// What happens to one question. Questions beyond the schedule are answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// It never arrives.
    Unreachable,
    /// It is decided, and the answer is lost.
    Lost,
    /// It arrives late.
    DecidedAfter(Duration),
    /// It is decided at once, and the answer is late.
    AnsweredAfter(Duration),
}

/// The one record of a world.
#[derive(Debug)]
pub(crate) struct Record {
    record: Mutex<OwnerRecord>,
    /// Every record there was, the first one included.
    history: Mutex<Vec<OwnerRecord>>,
}

impl Record {
    pub(crate) fn new(first: OwnerRecord) -> Arc<Self> {
        Arc::new(Self { record: Mutex::new(first.clone()), history: Mutex::new(vec![first]) })
    }

    pub(crate) fn read(&self) -> OwnerRecord {
        self.record.lock().unwrap().clone()
    }

    pub(crate) fn history(&self) -> Vec<OwnerRecord> {
        self.history.lock().unwrap().clone()
    }

    fn compare_and_set(&self, expected: &OwnerRecord, wanted: &OwnerRecord) -> CasOutcome {
        let mut record = self.record.lock().unwrap();
        let outcome = decide(&record, expected, wanted);
        if outcome == CasOutcome::Won && *record != *wanted {
            *record = wanted.clone();
            self.history.lock().unwrap().push(wanted.clone());
        }
        outcome
    }
}

/// The store as one side sees it.
#[derive(Debug)]
pub(crate) struct ModelStore {
    pub(crate) side: Side,
    pub(crate) host: HostName,
    pub(crate) record: Arc<Record>,
    pub(crate) answers: Mutex<VecDeque<Answer>>,
    /// Time that warming up takes.
    pub(crate) warm_up: Duration,
}

impl OwnerStore for ModelStore {
    async fn warm_up(&self) {
        tokio::time::sleep(self.warm_up).await;
    }

    async fn compare_and_set(
        &self,
        expected: &OwnerRecord,
        wanted: &OwnerRecord,
    ) -> Result<CasOutcome, StoreUnreachable> {
        assert_eq!(wanted.owner, self.host, "the {:?} asks for itself only", self.side);
        assert_eq!(wanted.epoch, expected.epoch.next(), "every change of the record has an epoch of its own");
        let answer = self.answers.lock().unwrap().pop_front();
        let unreachable = |why: &str| Err(StoreUnreachable(format!("{why}, as scheduled")));
        match answer {
            None => Ok(self.record.compare_and_set(expected, wanted)),
            Some(Answer::Unreachable) => unreachable("the question was lost"),
            Some(Answer::Lost) => {
                self.record.compare_and_set(expected, wanted);
                unreachable("the answer was lost")
            }
            Some(Answer::DecidedAfter(late)) => {
                tokio::time::sleep(late).await;
                Ok(self.record.compare_and_set(expected, wanted))
            }
            Some(Answer::AnsweredAfter(late)) => {
                let outcome = self.record.compare_and_set(expected, wanted);
                tokio::time::sleep(late).await;
                Ok(outcome)
            }
        }
    }
}
