//! Runs the cells of a program on a bus.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;
use tracing::{info, warn};

use crate::application::{App, AppError, BodyPlan};
use crate::bus::{Bus, Cell};
use crate::error::BusError;
use crate::subjects;

/// Makes a cell.
type MakeCell = Box<dyn Fn() -> Box<dyn Cell>>;

/// The cells that a program was built with, by the names that `app.yaml` calls them.
#[derive(Default)]
pub struct Registry {
    makers: BTreeMap<String, MakeCell>,
}

impl Registry {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a cell, or puts it in the place of the one with this name.
    #[must_use]
    pub fn with<C: Cell + 'static>(mut self, name: &str, make: impl Fn() -> C + 'static) -> Self {
        self.makers.insert(name.to_owned(), Box::new(move || Box::new(make())));
        self
    }
}

/// Why a body does not run. What was registered before has been; drop the bus to end it.
#[derive(Debug, Error)]
pub enum BodyError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error("the program was not built with the cell {0} of app.yaml")]
    NotBuilt(String),
    #[error("the cell {cell} has the subject {subject:?}: it must look like cbs.service.verb")]
    Subject { cell: String, subject: String },
    #[error("the cells {first} and {second} both serve {subject}: one of them would never be asked")]
    SubjectTwice { first: String, second: String, subject: String },
    #[error("two cells have the id {0}")]
    IdTwice(String),
    #[error("body.yaml wants the cell {0}, which is not in the program")]
    Missing(String),
    #[error("body.yaml says that the cell {cell} serves {planned:?}, it serves {served:?}")]
    OtherSubjects { cell: String, planned: Vec<String>, served: Vec<String> },
    #[error("registering the cell {cell}: {problem}")]
    Register { cell: String, problem: BusError },
}

/// Cells that run.
pub struct Body {
    cells: Vec<Box<dyn Cell>>,
    bus: Arc<dyn Bus>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

impl Body {
    /// Runs the cells of an `app.yaml`, in its order; a `body.yaml` is checked against what they serve.
    ///
    /// # Errors
    /// Before anything is registered: what does not fit together. Then: what the bus says.
    pub fn start(
        app: &App,
        plan: Option<&BodyPlan>,
        registry: &Registry,
        bus: Arc<dyn Bus>,
    ) -> Result<Self, BodyError> {
        let mut cells = Vec::new();
        for name in app.start_order()? {
            let make = registry.makers.get(name).ok_or_else(|| BodyError::NotBuilt(name.to_owned()))?;
            cells.push(make());
        }
        Self::start_cells(cells, plan, bus)
    }

    /// Runs these cells, in this order.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_cells(
        cells: Vec<Box<dyn Cell>>,
        plan: Option<&BodyPlan>,
        bus: Arc<dyn Bus>,
    ) -> Result<Self, BodyError> {
        check(&cells, plan)?;
        for cell in &cells {
            cell.register(&bus)
                .map_err(|problem| BodyError::Register { cell: cell.id().to_owned(), problem })?;
            info!(cell = cell.id(), subjects = ?cell.subjects(), "a cell runs");
        }
        Ok(Self { cells, bus })
    }

    /// The cells, in the order in which they were started.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().map(|cell| cell.id())
    }

    #[must_use]
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.bus
    }
}

fn check(cells: &[Box<dyn Cell>], plan: Option<&BodyPlan>) -> Result<(), BodyError> {
    let mut by_id: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for cell in cells {
        let id = cell.id().to_owned();
        let mut served = cell.subjects();
        served.sort();
        for subject in &served {
            if !subjects::is_request(subject) {
                return Err(BodyError::Subject { cell: id, subject: subject.clone() });
            }
            if let Some(first) = owners.insert(subject.clone(), id.clone()) {
                return Err(BodyError::SubjectTwice { first, second: id, subject: subject.clone() });
            }
        }
        if by_id.insert(id.clone(), served).is_some() {
            return Err(BodyError::IdTwice(id));
        }
    }
    for planned in plan.map(|plan| plan.cells.as_slice()).unwrap_or_default() {
        if planned.language != "rust" {
            warn!(
                cell = planned.id,
                language = planned.language,
                "this cell has to run in a process of its own"
            );
            continue;
        }
        let served = by_id.get(&planned.id).ok_or_else(|| BodyError::Missing(planned.id.clone()))?;
        let mut wanted = planned.subjects.clone();
        wanted.sort();
        if *served != wanted {
            let (cell, planned, served) = (planned.id.clone(), wanted, served.clone());
            return Err(BodyError::OtherSubjects { cell, planned, served });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Handler;
    use crate::envelope::Envelope;

    struct Nobody;

    impl Bus for Nobody {
        fn ask(&self, _: &Envelope) -> Result<Envelope, BusError> {
            Err(BusError::no_subscribers())
        }

        fn subscribe(&self, _: &str, _: Handler) -> Result<(), BusError> {
            Ok(())
        }
    }

    struct Dummy(&'static str, &'static [&'static str]);

    impl Cell for Dummy {
        fn id(&self) -> &str {
            self.0
        }

        fn subjects(&self) -> Vec<String> {
            self.1.iter().map(|subject| (*subject).to_owned()).collect()
        }

        fn register(&self, _: &Arc<dyn Bus>) -> Result<(), BusError> {
            Ok(())
        }
    }

    fn start(cells: Vec<Dummy>, plan: Option<&str>) -> Result<Body, BodyError> {
        let cells = cells.into_iter().map(|cell| Box::new(cell) as Box<dyn Cell>).collect();
        let plan = plan.map(|text| BodyPlan::parse(text).unwrap());
        Body::start_cells(cells, plan.as_ref(), Arc::new(Nobody))
    }

    #[test]
    fn what_does_not_fit_together_does_not_start() {
        let greeter = || Dummy("greeter", &["cbs.greeter.say_hello"]);
        let plan = "cells: [{id: greeter, subjects: [cbs.greeter.say_hello]}, {id: ui, subjects: [], language: dart}]";
        assert!(start(vec![greeter()], Some(plan)).is_ok());
        assert!(matches!(start(vec![], Some(plan)), Err(BodyError::Missing(_))));
        assert!(matches!(
            start(vec![Dummy("greeter", &[])], Some(plan)),
            Err(BodyError::OtherSubjects { .. })
        ));
        assert!(matches!(
            start(vec![greeter(), Dummy("b", &["cbs.greeter.say_hello"])], None),
            Err(BodyError::SubjectTwice { .. })
        ));
        assert!(matches!(start(vec![Dummy("a", &[]), Dummy("a", &[])], None), Err(BodyError::IdTwice(_))));
        assert!(matches!(start(vec![Dummy("a", &["cbs.a"])], None), Err(BodyError::Subject { .. })));
        let app = App::parse("name: m\nversion: '1'\ndescription: d\ncells: [{name: a, path: a}]\n").unwrap();
        let started = Body::start(&app, None, &Registry::new(), Arc::new(Nobody));
        assert!(matches!(started, Err(BodyError::NotBuilt(_))));
        let registry = Registry::new().with("a", || Dummy("a", &["cbs.a.b"]));
        assert_eq!(
            Body::start(&app, None, &registry, Arc::new(Nobody)).unwrap().ids().collect::<Vec<_>>(),
            ["a"]
        );
    }
}
