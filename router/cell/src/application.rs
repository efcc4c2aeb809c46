//! What a program is made of: `app.yaml` (its cells and in which order they start) and `body.yaml` (which subjects
//! each must serve, and in what language it is).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::subjects;

/// Bytes of one of the two files.
const FILE_BYTES_MAX: u64 = 1 << 20;
const CELLS_MAX: usize = 10_000;

/// `app.yaml`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct App {
    pub name: String,
    pub version: String,
    pub description: String,
    pub cells: Vec<AppCell>,
    /// Cells of other folders that the program uses, by name.
    #[serde(default)]
    pub shared_cells: Vec<String>,
}

/// A cell of `app.yaml`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct AppCell {
    pub name: String,
    /// Where its source is, from the folder of `app.yaml`.
    pub path: String,
    /// Names of cells that start before it.
    #[serde(default)]
    pub dependencies: Vec<String>,
}

/// `body.yaml`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct BodyPlan {
    pub cells: Vec<PlannedCell>,
}

/// A cell of `body.yaml`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PlannedCell {
    pub id: String,
    pub subjects: Vec<String>,
    /// What is not `rust` runs in a process of its own. Default rust.
    #[serde(default = "rust")]
    pub language: String,
}

fn rust() -> String {
    "rust".to_owned()
}

/// What is wrong with one of the files.
#[derive(Debug, Error)]
pub enum AppError {
    #[error("reading {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is wrong: {problem}", path.display())]
    File { path: PathBuf, problem: Box<Self> },
    #[error("{0}")]
    Yaml(String),
    #[error("more than {CELLS_MAX} cells")]
    TooMany,
    #[error("the cell {0} is there twice")]
    Twice(String),
    #[error("the cell {cell} depends on {on}, which is not there")]
    Unknown { cell: String, on: String },
    #[error("the cells {0} depend on each other in a circle")]
    Circle(String),
    #[error("the cell {cell} has its path {path:?} outside of the application")]
    Outside { cell: String, path: String },
    #[error("the folder {} of the cell {cell} is not there", path.display())]
    NoFolder { cell: String, path: PathBuf },
    #[error("the cell {cell} has the subject {subject:?}: it must look like cbs.service.verb")]
    Subject { cell: String, subject: String },
}

impl App {
    /// Reads `app.yaml` of a folder, and looks whether its cells are there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(folder: &Path) -> Result<Self, AppError> {
        let path = folder.join("app.yaml");
        let app = Self::parse(&text_of(&path)?).map_err(|problem| in_file(&path, problem))?;
        for cell in &app.cells {
            let path = folder.join(&cell.path);
            if !path.is_dir() {
                return Err(AppError::NoFolder { cell: cell.name.clone(), path });
            }
        }
        Ok(app)
    }

    /// Reads the text of an `app.yaml`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, AppError> {
        let app: Self = yaml(text)?;
        if app.cells.len() > CELLS_MAX {
            return Err(AppError::TooMany);
        }
        for cell in &app.cells {
            let path = Path::new(&cell.path);
            let leads_out = path
                .components()
                .any(|part| !matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
            if leads_out {
                return Err(AppError::Outside { cell: cell.name.clone(), path: cell.path.clone() });
            }
        }
        app.start_order()?;
        Ok(app)
    }

    /// The names of the cells, each behind those that it depends on, else as they stand in the file.
    ///
    /// # Errors
    /// A dependency is not there, or leads in a circle.
    pub fn start_order(&self) -> Result<Vec<&str>, AppError> {
        let mut waiting: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for cell in &self.cells {
            let on = cell.dependencies.iter().map(String::as_str).collect();
            if waiting.insert(&cell.name, on).is_some() {
                return Err(AppError::Twice(cell.name.clone()));
            }
        }
        for cell in &self.cells {
            let is_there = |on: &&String| waiting.contains_key(on.as_str()) || self.shared_cells.contains(on);
            if let Some(on) = cell.dependencies.iter().find(|on| !is_there(on)) {
                return Err(AppError::Unknown { cell: cell.name.clone(), on: on.clone() });
            }
        }
        for on in waiting.values_mut() {
            // Shared cells run elsewhere.
            on.retain(|name| self.cells.iter().any(|cell| cell.name == **name));
        }
        let mut order = Vec::with_capacity(self.cells.len());
        while order.len() < self.cells.len() {
            let is_ready = |cell: &&AppCell| waiting.get(cell.name.as_str()).is_some_and(BTreeSet::is_empty);
            let Some(next) = self.cells.iter().find(is_ready) else {
                let names: Vec<&str> = waiting.keys().copied().collect();
                return Err(AppError::Circle(names.join(", ")));
            };
            waiting.remove(next.name.as_str());
            for on in waiting.values_mut() {
                on.remove(next.name.as_str());
            }
            order.push(next.name.as_str());
        }
        Ok(order)
    }
}

impl BodyPlan {
    /// Reads a `body.yaml`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, AppError> {
        Self::parse(&text_of(path)?).map_err(|problem| in_file(path, problem))
    }

    /// Reads the text of a `body.yaml`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, AppError> {
        let plan: Self = yaml(text)?;
        if plan.cells.len() > CELLS_MAX {
            return Err(AppError::TooMany);
        }
        let mut ids = BTreeSet::new();
        for cell in &plan.cells {
            if !ids.insert(&cell.id) {
                return Err(AppError::Twice(cell.id.clone()));
            }
            if let Some(subject) = cell.subjects.iter().find(|subject| !subjects::is_request(subject)) {
                return Err(AppError::Subject { cell: cell.id.clone(), subject: subject.clone() });
            }
        }
        Ok(plan)
    }
}

fn yaml<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, AppError> {
    // Aliases, depth and size are bounded by the parser.
    serde_saphyr::from_str(text).map_err(|problem| AppError::Yaml(problem.to_string()))
}

fn text_of(path: &Path) -> Result<String, AppError> {
    let unreadable = |source| AppError::Unreadable { path: path.to_owned(), source };
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(AppError::TooLarge { path: path.to_owned() });
    }
    fs::read_to_string(path).map_err(unreadable)
}

fn in_file(path: &Path, problem: AppError) -> AppError {
    AppError::File { path: path.to_owned(), problem: Box::new(problem) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(cells: &[(&str, &[&str])]) -> Result<App, AppError> {
        let mut text = "name: demo\nversion: 1.0.0\ndescription: d\ncells:\n".to_owned();
        for (name, on) in cells {
            text.push_str(&format!("  - name: {name}\n    path: cells/{name}\n    dependencies: {on:?}\n"));
        }
        App::parse(&text)
    }

    #[test]
    fn cells_start_behind_what_they_depend_on() {
        let order = app(&[("greet", &["prompt", "print"]), ("prompt", &[]), ("print", &["prompt"])]).unwrap();
        assert_eq!(order.start_order().unwrap(), ["prompt", "print", "greet"]);
        assert!(matches!(app(&[("a", &["b"]), ("b", &["a"])]), Err(AppError::Circle(_))));
        assert!(matches!(app(&[("a", &["a"])]), Err(AppError::Circle(_))));
        assert!(matches!(app(&[("a", &["x"])]), Err(AppError::Unknown { .. })));
        assert!(matches!(app(&[("a", &[]), ("a", &[])]), Err(AppError::Twice(_))));
    }

    #[test]
    fn an_app_may_say_little_and_nothing_outside() {
        let minimal = App::parse("name: m\nversion: 1.0.0\ndescription: d\ncells: []\n").unwrap();
        assert!(minimal.cells.is_empty() && minimal.shared_cells.is_empty());
        for text in ["", "invalid: yaml: content: [", "name: m", "[1]"] {
            assert!(matches!(App::parse(text), Err(AppError::Yaml(_))), "{text:?}");
        }
        let text = |path: &str| {
            format!("name: m\nversion: '1'\ndescription: d\ncells: [{{name: a, path: {path}}}]\n")
        };
        for path in ["../a", "/etc", "cells/../../a"] {
            assert!(matches!(App::parse(&text(path)), Err(AppError::Outside { .. })), "{path}");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("app.yaml"), text("cells/a")).unwrap();
        assert!(matches!(App::read(folder.path()), Err(AppError::NoFolder { .. })));
        fs::create_dir_all(folder.path().join("cells/a")).unwrap();
        assert_eq!(App::read(folder.path()).unwrap().cells[0].name, "a");
    }

    #[test]
    fn a_plan_names_subjects() {
        let plan = BodyPlan::parse("cells:\n  - id: greeter\n    subjects: [cbs.greeter.say_hello]\n  - id: ui\n    subjects: []\n    language: dart\n").unwrap();
        assert_eq!((plan.cells[0].language.as_str(), plan.cells[1].language.as_str()), ("rust", "dart"));
        let wrong = BodyPlan::parse("cells: [{id: a, subjects: [cbs.Greeter.hello]}]");
        assert!(matches!(wrong, Err(AppError::Subject { .. })));
        assert!(matches!(BodyPlan::parse("cells: []\nmore: 1\n"), Err(AppError::Yaml(_))));
    }
}
