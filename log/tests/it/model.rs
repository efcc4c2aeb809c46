//! Random lives, held against a model, with stops clean and unclean between them.

use beamlog_log::{LogOptions, SeededRandom, inspect};

use crate::world::{World, directory, new_disk, open};

#[test]
fn random_lives_hold_what_the_model_holds() {
    for seed in 0..60 {
        let mut random = SeededRandom::new(seed);
        let disk = new_disk();
        let options = LogOptions::for_simulation();
        let mut world = World::new(&disk, &options).unwrap();
        for _ in 0..5 {
            world.live(&mut random, 60).unwrap();
            world.check_reads();
            let state = world.state.clone();
            if random.one_in(2) {
                world.log.close().unwrap();
            }
            let report = inspect::check(&disk, directory()).unwrap();
            assert!(report.is_sound(), "seed {seed}: {report:#?}");
            assert!(report.unexpected.is_empty(), "seed {seed}: {report:#?}");
            let opened = open(&disk, options.clone()).unwrap();
            assert_eq!(opened.report.indexes_rebuilt, 0, "seed {seed}");
            world = World::over(&disk, opened);
            assert_eq!(world.state, state, "seed {seed}");
            world.check_reads();
        }
        let stats = world.log.stats();
        assert_eq!(stats.unreadable, 0);
    }
}

#[test]
fn lives_reach_every_kind_of_upkeep() {
    let mut removed = 0;
    let mut compacted = 0;
    for seed in 0..10 {
        let mut random = SeededRandom::new(seed);
        let disk = new_disk();
        let mut world = World::new(&disk, &LogOptions::for_simulation()).unwrap();
        world.live(&mut random, 1500).unwrap();
        let stats = world.log.stats();
        removed += stats.segments_removed;
        compacted += stats.segments_compacted;
        world.check_reads();
    }
    assert!(removed > 0 && compacted > 0, "removed {removed}, compacted {compacted}");
}
