//! What must be gone when a run is over. Who holds it in a circle keeps it for as long as the process lives: a simulator
//! runs out of memory by that, and so would a process that opens and closes nodes.

use std::sync::{Arc, Mutex, PoisonError};

/// Things of a run, by weak references.
#[derive(Default)]
pub struct Remains(Mutex<Vec<Thing>>);

struct Thing {
    name: String,
    is_held: Box<dyn Fn() -> bool + Send>,
}

impl Remains {
    /// Remembers something that nobody may hold at the end.
    pub fn expect_gone<T: Send + Sync + ?Sized + 'static>(&self, name: String, thing: &Arc<T>) {
        let weak = Arc::downgrade(thing);
        let is_held = Box::new(move || weak.strong_count() > 0);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Thing { name, is_held });
    }

    /// What is still held.
    #[must_use]
    pub fn held(&self) -> Vec<String> {
        let things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        things.iter().filter(|thing| (thing.is_held)()).map(|thing| thing.name.clone()).collect()
    }
}
