//! Goes through the crash matrix: which steps there are, at which of them a
//! daemon dies, and what that came to. What one death is, is in `case.rs`.

use crate::{
    case::{Cut, point, undisturbed},
    jobs,
    operations::{OPERATIONS, Operation},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    thread,
    time::Instant,
};

/// Where a step stands: the how manyeth it is, and among those of its operation.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) number: usize,
    within: usize,
    of: usize,
}

impl Place {
    /// Whether `make test` dies here: once in each operation.
    pub(crate) fn is_chosen(self) -> bool {
        self.within == (self.number - self.within) % self.of
    }
}

/// Numbers the steps of several cases as one row of all.
#[derive(Default)]
struct Places(usize);

impl Places {
    /// Those of the next case's steps that are wanted.
    fn wanted<'a>(
        &mut self,
        steps: &'a [String],
        wanted: impl Fn(Place) -> bool,
    ) -> impl Iterator<Item = &'a str> {
        let (begin, of) = (self.0, steps.len());
        self.0 += of;
        let numbered = steps.iter().enumerate();
        numbered.filter_map(move |(within, step)| {
            let number = begin + within;
            wanted(Place { number, within, of }).then_some(step.as_str())
        })
    }
}

/// What the deaths of one operation have come to so far.
#[derive(Default)]
struct Row {
    left: usize,
    died: usize,
    missed: usize,
    broken: usize,
}

/// What a run came to.
#[derive(Default)]
pub(crate) struct Tally {
    deaths: usize,
    doubles: usize,
    missed: Vec<String>,
    broken: Vec<String>,
    pub(crate) passed: BTreeSet<String>,
}

impl Tally {
    /// Dies at each of these, and tells of each operation when its last one has
    /// ended. Answers what each recovery passed; nothing where one broke
    /// something, or its step was not passed again.
    fn die(&mut self, cuts: &[Cut<'_>], began: Instant) -> Vec<Vec<String>> {
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        for cut in cuts {
            rows.entry(cut.operation.name).or_default().left += 1;
        }
        let rows = Mutex::new(rows);
        let kind = |cut: &Cut<'_>| cut.second.map_or("deaths", |_| "deaths in a recovery");
        let results = jobs::each(cuts, Cut::go, |cut, result| {
            let mut rows = rows.lock().unwrap();
            let name = cut.operation.name;
            let row = rows.get_mut(name).expect("each has its row");
            row.left -= 1;
            match result {
                Ok(Some(_)) => row.died += 1,
                Ok(None) => row.missed += 1,
                Err(_) => row.broken += 1,
            }
            if row.left == 0 {
                println!(
                    "{name}: {} {}, {} not passed again, {} broken; after {:?}",
                    row.died,
                    kind(cut),
                    row.missed,
                    row.broken,
                    began.elapsed()
                );
            }
        });
        let each = cuts.iter().zip(results);
        each.map(|(cut, result)| self.note(cut, result)).collect()
    }

    fn note(&mut self, cut: &Cut<'_>, result: thread::Result<Option<Vec<String>>>) -> Vec<String> {
        match result {
            Ok(Some(passed)) => {
                match cut.second {
                    Some(_) => self.doubles += 1,
                    None => self.deaths += 1,
                }
                self.pass(&passed);
                return passed;
            }
            Ok(None) => self.missed.push(cut.to_string()),
            Err(_) => self.broken.push(cut.to_string()),
        }
        Vec::new()
    }

    fn pass(&mut self, steps: &[String]) {
        self.passed
            .extend(steps.iter().map(|step| point(step).to_owned()));
    }

    fn assert_well(&self) {
        let Self {
            deaths,
            doubles,
            missed,
            broken,
            ..
        } = self;
        println!(
            "{deaths} deaths, {doubles} with a second one in the recovery, {} steps not passed again",
            missed.len()
        );
        assert!(
            broken.is_empty(),
            "{} broke something, see above: {broken:#?}",
            broken.len()
        );
        // On a busy host more commits become one.
        assert!(
            missed.len() * 10 <= deaths + doubles,
            "too many steps were not passed again: {missed:#?}"
        );
    }
}

/// All operations, or the one that `VMAN_TEST_OPERATION` names.
fn operations() -> Vec<&'static Operation> {
    let wanted = std::env::var("VMAN_TEST_OPERATION").ok();
    let wanted = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let all = OPERATIONS.iter();
    let named: Vec<_> = all.filter(|operation| wanted(operation.name)).collect();
    assert!(!named.is_empty(), "VMAN_TEST_OPERATION names none");
    named
}

/// Goes through the steps of all operations that `first` takes, and through
/// those of the recoveries from them that `second` takes.
pub(crate) fn walk(first: impl Fn(Place) -> bool, second: impl Fn(Place) -> bool) -> Tally {
    let (mut tally, operations, began) = (Tally::default(), operations(), Instant::now());
    let known = jobs::each(&operations, |operation| undisturbed(operation), |_, _| ());
    let (mut cuts, mut places) = (Vec::new(), Places::default());
    for (&operation, known) in operations.iter().zip(&known) {
        let Ok(known) = known else {
            tally.broken.push(operation.name.to_owned());
            continue;
        };
        tally.pass(&known.passed);
        let steps = places.wanted(&known.passed, &first);
        cuts.extend(steps.map(|first| Cut {
            operation,
            known,
            first,
            second: None,
        }));
    }
    println!(
        "{} operations pass {} steps; {} to die at",
        operations.len(),
        places.0,
        cuts.len()
    );
    let recoveries = tally.die(&cuts, began);
    let (mut again, mut places) = (Vec::new(), Places::default());
    for (cut, recovery) in cuts.iter().zip(&recoveries) {
        let steps = places.wanted(recovery, &second);
        again.extend(steps.map(|second| Cut {
            second: Some(second),
            ..*cut
        }));
    }
    println!(
        "their recoveries pass {} steps; {} to die at",
        places.0,
        again.len()
    );
    tally.die(&again, began);
    tally.assert_well();
    tally
}
