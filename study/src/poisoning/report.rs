//! What came of it, for people.

use super::{Attack, Defence, Outcome};
use crate::plots::{self, HeatMap};
use crate::setup::Source;
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A cell: a defence under an attack, mean over seeds.
struct Cell {
    auroc: f64,
    accuracy: f64,
    backdoor: f64,
    rejected: f64,
    shortened: f64,
    rounds: usize,
    seeds: usize,
}

fn cell(outcomes: &[&Outcome], defence: Defence, attack: Attack, attackers: usize) -> Option<Cell> {
    let of: Vec<&&Outcome> = outcomes
        .iter()
        .filter(|outcome| {
            let case = &outcome.case;
            (case.defence, case.attack, case.attackers) == (defence, attack, attackers)
        })
        .collect();
    let first = of.first()?;
    let mean = |value: &dyn Fn(&Outcome) -> f64| of.iter().map(|o| value(o)).sum::<f64>() / of.len() as f64;
    Some(Cell {
        auroc: mean(&|outcome| outcome.auroc),
        accuracy: mean(&|outcome| outcome.accuracy),
        backdoor: mean(&|outcome| outcome.backdoor.estimate),
        rejected: mean(&|outcome| outcome.rejected.into()),
        shortened: mean(&|outcome| outcome.shortened.into()),
        rounds: first.by_round.len(),
        seeds: of.len(),
    })
}

/// Outcomes by data set.
fn by_source<'a>(outcomes: &[&'a Outcome]) -> BTreeMap<Source, Vec<&'a Outcome>> {
    let mut groups: BTreeMap<Source, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        groups.entry(outcome.case.source).or_default().push(outcome);
    }
    groups
}

/// The values of `of` that occur, in the order of first occurrence.
fn occurring<T: PartialEq>(outcomes: &[&Outcome], of: impl Fn(&Outcome) -> T) -> Vec<T> {
    let mut values = Vec::new();
    for outcome in outcomes {
        let value = of(outcome);
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

/// Tables: a defence a line, an attack a column, a table for each data set and number of attackers. A cell holds AUROC and
/// accuracy; then, for a backdoor, its success; then how many rounds were rejected.
#[must_use]
pub fn markdown(outcomes: &[&Outcome]) -> String {
    let mut text = String::new();
    for (source, of) in by_source(outcomes) {
        let mut numbers = occurring(&of, |outcome| outcome.case.attackers);
        numbers.sort_unstable();
        numbers.retain(|attackers| *attackers > 0);
        if numbers.is_empty() {
            // Nobody attacks anywhere: the column of the others is the whole table.
            numbers.push(0);
        }
        for attackers in numbers {
            let mine: Vec<&Outcome> =
                of.iter().copied().filter(|o| [0, attackers].contains(&o.case.attackers)).collect();
            let attacks = occurring(&mine, |outcome| outcome.case.attack);
            let sites = of[0].sites;
            // Writing to a string does not fail.
            let _ = writeln!(text, "**{}, {attackers} of {sites} sites attack**\n", source.title());
            let titles: Vec<&str> = attacks.iter().map(|attack| attack.title()).collect();
            let _ = writeln!(text, "| defence | {} |", titles.join(" | "));
            let _ = writeln!(text, "| --- |{}", " ---: |".repeat(attacks.len()));
            for defence in occurring(&mine, |outcome| outcome.case.defence) {
                let _ = write!(text, "| {} |", defence.name());
                for &attack in &attacks {
                    let by = if attack == Attack::None { 0 } else { attackers };
                    let shown = cell(&mine, defence, attack, by)
                        .map_or_else(String::new, |c| show(&c, attack, defence));
                    let _ = write!(text, " {shown} |");
                }
                text.push('\n');
            }
            text.push('\n');
        }
    }
    text
}

fn show(cell: &Cell, attack: Attack, defence: Defence) -> String {
    let mut shown = format!("{:.3} / {:.2}", cell.auroc, cell.accuracy);
    if attack.has_backdoor() || attack == Attack::None {
        let _ = write!(shown, " / {:.0}%", 100.0 * cell.backdoor);
    }
    if defence.vote {
        let _ = write!(shown, " ({:.0} of {} rejected)", cell.rejected, cell.rounds);
    }
    if cell.shortened > 0.0 {
        let _ = write!(shown, " ({:.0} of {} scaled down)", cell.shortened, cell.rounds);
    }
    if cell.seeds > 1 {
        let _ = write!(shown, " ×{}", cell.seeds);
    }
    shown
}

/// The heat map of one data set, as SVG: for each defence and attack what is lost in AUROC against the best defence that
/// nobody attacks, and for backdoors their success, if that is more.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn heat_map(outcomes: &[&Outcome], source: Source) -> Result<String> {
    let of: Vec<&Outcome> = outcomes.iter().copied().filter(|o| o.case.source == source).collect();
    let mut columns = occurring(&of, |outcome| (outcome.case.attackers, outcome.case.attack));
    columns.sort_unstable();
    let rows = occurring(&of, |outcome| outcome.case.defence);
    let clean = of.iter().filter(|outcome| outcome.case.attack == Attack::None).map(|outcome| outcome.auroc);
    let best = clean.fold(0.5, f64::max);
    let harm = |defence: Defence, (attackers, attack): (usize, Attack)| {
        let cell = cell(&of, defence, attack, attackers)?;
        // AUROC of 1/2 is all that can be lost.
        let lost = ((best - cell.auroc) / (best - 0.5)).clamp(0.0, 1.0);
        Some(if attack.has_backdoor() { lost.max(cell.backdoor) } else { lost })
    };
    plots::heat_map(&HeatMap {
        title: format!("{}: harm done, of all that can be", source.title()),
        columns: columns
            .iter()
            .map(|(attackers, attack)| match attackers {
                0 => "no attack".to_owned(),
                _ => format!("{} by {attackers}", attack.title()),
            })
            .collect(),
        rows: rows
            .iter()
            .map(|&defence| (defence.name(), columns.iter().map(|&column| harm(defence, column)).collect()))
            .collect(),
    })
}
