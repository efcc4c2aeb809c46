//! Every corpus holds, a few mutations of it hold, and no target is forgotten.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::Path};

use beamlog_fuzz::{
    corpus,
    mutate::Mutator,
    targets::{TARGETS, Target},
};

/// Mutations of each target here; `beamlog-fuzz` runs more.
const MUTATIONS: u32 = 2_000;

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn targets_their_files_and_their_corpora_are_the_same_set() {
    let listed: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names(&corpus::root()), listed);
    assert_eq!(names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/targets")), listed);
}

#[test]
fn every_well_formed_input_is_in_its_corpus() {
    for target in TARGETS {
        let inputs: BTreeSet<Vec<u8>> =
            corpus::load(target.name).unwrap().into_iter().map(|(_, bytes)| bytes).collect();
        for seed in (target.seeds)() {
            assert!(inputs.contains(&seed), "{}: run `beamlog-fuzz --write-seeds`", target.name);
        }
    }
}

fn replay(target: &Target) {
    let inputs = corpus::load(target.name).unwrap();
    for (path, input) in &inputs {
        println!("{}", path.display());
        (target.run)(input);
    }
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, bytes)| bytes).collect();
    let mut mutator = Mutator::new(2, &inputs, target.words);
    let mut input = Vec::new();
    for number in 0..MUTATIONS {
        mutator.next_into(&mut input);
        println!("{}, mutation {number}", target.name);
        (target.run)(&input);
    }
}

#[test]
fn every_corpus_and_some_mutations_hold() {
    for target in TARGETS {
        replay(target);
    }
}

#[test]
fn the_same_seed_makes_the_same_inputs() {
    let inputs = [b"some input".to_vec(), b"another one".to_vec()];
    let make = |seed| {
        let mut mutator = Mutator::new(seed, &inputs, &[b"word"]);
        let mut made = vec![Vec::new(); 200];
        made.iter_mut().for_each(|input| mutator.next_into(input));
        made
    };
    assert_eq!(make(1), make(1));
    assert_ne!(make(1), make(2));
    let distinct: BTreeSet<Vec<u8>> = make(1).into_iter().collect();
    assert!(distinct.len() > 100, "mutations repeat themselves: {}", distinct.len());
}
