//! Cases of the model that random schedules seldom meet, one by one.

use anyhow::{Context, Result, ensure};
use tailwater::batch::BatchLimits;

use super::history::{Change, Key};
use super::{ALL, Arena, VARIANTS, Variant, stage};
use crate::support::http_proxy::Fate;

const A: Key = (1, "a");
const B: Key = (2, "a");
const C: Key = (3, "a");

/// Neither text changes, so neither is sent.
const fn moves(from: Key, to: Key) -> Change {
    Change::Update(from, to, [false; 2])
}

/// Transactions, each a list of changes.
type Story = &'static [&'static [Change]];

/// What a sink wrote before it died at the end of its batch, and what had come on top of it when the next one began.
struct Case {
    name: &'static str,
    applied: Story,
    tried: Story,
    more: Story,
}

const CASES: &[Case] = &[
    Case {
        name: "a row that came and goes",
        applied: &[],
        tried: &[&[Change::Insert(A)]],
        more: &[&[Change::Delete(A)]],
    },
    Case {
        name: "a row that came, moved and goes",
        applied: &[],
        tried: &[&[Change::Insert(A), moves(A, B)]],
        more: &[&[moves(B, C), Change::Delete(C)]],
    },
    Case {
        name: "a row that moves on",
        applied: &[&[Change::Insert(A)]],
        tried: &[&[moves(A, B)]],
        more: &[&[moves(B, C)]],
    },
    Case {
        name: "a row that moves on while another stands where it came from",
        applied: &[&[Change::Insert(A)]],
        tried: &[&[moves(A, B)], &[Change::Insert(A)]],
        more: &[&[moves(B, C)]],
    },
    Case {
        name: "a swap of which the last step was missing",
        applied: &[&[Change::Insert(A), Change::Insert(B)]],
        tried: &[&[moves(A, C)], &[moves(B, A)]],
        more: &[&[moves(C, B)]],
    },
    Case {
        name: "a swap and back",
        applied: &[&[Change::Insert(A), Change::Insert(B)]],
        tried: &[&[moves(A, C), moves(B, A), moves(C, B)]],
        more: &[&[moves(A, C), moves(B, A), moves(C, B)]],
    },
    Case {
        name: "a row that moved and is gone",
        applied: &[&[Change::Insert(A)]],
        tried: &[&[moves(A, B)], &[moves(B, C)], &[Change::Delete(C)]],
        more: &[],
    },
    Case {
        name: "a row that moved before all went",
        applied: &[&[Change::Insert(A)]],
        tried: &[&[moves(A, B)], &[Change::Truncate]],
        more: &[&[Change::Insert(A)]],
    },
    Case {
        name: "a row that moved to where others had been before all went",
        applied: &[&[Change::Insert(A), Change::Insert(B)]],
        tried: &[&[Change::Delete(B)], &[moves(A, B)], &[Change::Truncate]],
        more: &[&[Change::Insert(B)]],
    },
    Case {
        name: "a swap in which both texts come one by one",
        applied: &[&[Change::Insert(A), Change::Insert(B)]],
        tried: &[&[Change::Update(A, C, [false, true]), moves(B, A), Change::Update(C, B, [true, false])]],
        more: &[],
    },
    Case {
        name: "a row that goes when another has long stood where it came from",
        applied: &[&[Change::Insert(A)]],
        tried: &[&[
            Change::Update(A, A, [true, true]),
            moves(A, B),
            Change::Insert(A),
            Change::Update(B, B, [true, false]),
            Change::Delete(B),
        ]],
        more: &[],
    },
    Case {
        name: "a row that goes when one that moved stands where it came from",
        applied: &[&[Change::Insert(A), Change::Insert(B)]],
        tried: &[&[moves(A, C), moves(B, A), Change::Update(C, C, [true, false]), Change::Delete(C)]],
        more: &[],
    },
    Case {
        name: "a row that is left out and comes to where another was",
        // Of an insert after an insert the number is higher by three; the fourth one's does not match.
        applied: &[&[
            Change::Insert(A),
            Change::Delete(A),
            Change::Insert(A),
            Change::Delete(A),
            Change::Insert(A),
            Change::Delete(A),
            Change::Insert(A),
            Change::Insert(B),
        ]],
        tried: &[&[Change::Delete(B), moves(A, B)]],
        more: &[],
    },
];

async fn apply_all(arena: &mut Arena<'_>, story: Story, limits: BatchLimits) -> Result<bool> {
    story.iter().for_each(|changes| arena.history.commit_these(changes));
    arena.apply(arena.history.len(), limits).await
}

/// A batch whose rows were written and whose checkpoint was not is part of a longer one when it comes again, or comes in
/// shorter ones. What came and went is buried, and a row that moved finds its values wherever the first try has put it.
#[tokio::test(flavor = "multi_thread")]
async fn batch_that_comes_again_with_other_bounds_changes_nothing() -> Result<()> {
    let (server, proxy) = stage("ch-again")?;
    let mut wrong = Vec::new();
    for variant in VARIANTS {
        for case in CASES {
            for limits in [ALL, BatchLimits { commits: 1, ..ALL }] {
                let mut arena = Arena::new(&server, &proxy, variant)?;
                apply_all(&mut arena, case.applied, ALL).await?;
                apply_all(&mut arena, &[], ALL).await?;
                proxy.cut_at("INSERT INTO tailwater.checkpoint", Fate::Unsent);
                ensure!(!apply_all(&mut arena, case.tried, ALL).await?, "the sink did not die");
                arena.recover().await?;
                ensure!(arena.at == case.applied.len(), "the checkpoint was written");
                let outcome = apply_all(&mut arena, case.more, limits).await.and_then(|applied| {
                    ensure!(applied, "the sink died");
                    ensure!(arena.at == arena.furthest, "not everything was compared");
                    Ok(())
                });
                if let Err(error) = outcome {
                    wrong.push(format!("{variant:?}, {} commits at a time: {}: {error:#}", limits.commits, case.name));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Wherever between writes to the target the sink died, its rows come again one by one, and each finds what it lacks. In such small batches some
/// rows pass through places where the large one never put them.
#[tokio::test(flavor = "multi_thread")]
async fn h80_batch_that_was_cut_anywhere_comes_again_row_by_row() -> Result<()> {
    let (server, proxy) = stage("ch-cut")?;
    let (mut wrong, mut deaths) = (Vec::new(), 0);
    for (variant, fate) in
        VARIANTS.into_iter().flat_map(|variant| [Fate::Unanswered, Fate::Late].map(|fate| (variant, fate)))
    {
        for case in CASES {
            for writes in 0.. {
                let mut arena = Arena::new(&server, &proxy, variant)?;
                apply_all(&mut arena, case.applied, ALL).await?;
                apply_all(&mut arena, &[], ALL).await?;
                proxy.cut_at_one_of("INSERT INTO `model`", writes, fate);
                if apply_all(&mut arena, case.tried, ALL).await? {
                    proxy.calm();
                    ensure!(writes > 0, "the proxy cuts nothing");
                    break;
                }
                deaths += 1;
                arena.recover().await?;
                // Half of it is done when what was late arrives.
                let outcome = async {
                    let one_by_one = BatchLimits { rows: 1, ..ALL };
                    ensure!(arena.apply(arena.history.len() - 1, one_by_one).await?, "the sink died");
                    proxy.deliver()?;
                    ensure!(arena.apply(arena.history.len(), one_by_one).await?, "the sink died");
                    ensure!(arena.at == arena.furthest, "not everything was compared");
                    Ok(())
                };
                if let Err(error) = outcome.await {
                    wrong.push(format!("{variant:?}, {fate:?} after {writes} writes: {}: {error:#}", case.name));
                }
            }
        }
    }
    eprintln!("{deaths} deaths");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// An insert that the server carries out when its sender is long dead, and others have gone on from there.
#[tokio::test(flavor = "multi_thread")]
async fn insert_that_arrives_late_raises_nobody() -> Result<()> {
    let (server, proxy) = stage("ch-late")?;
    for variant in VARIANTS {
        for (name, end) in [("deleted", Change::Delete(A)), ("truncated", Change::Truncate), ("moved", moves(A, B))] {
            let mut arena = Arena::new(&server, &proxy, variant)?;
            apply_all(&mut arena, &[&[Change::Insert(C)]], ALL).await?;
            proxy.cut_at("INSERT INTO `model`", Fate::Late);
            ensure!(!apply_all(&mut arena, &[&[Change::Insert(A)]], ALL).await?, "the sink did not die");
            arena.recover().await?;
            arena.history.commit_these(&[end]);
            ensure!(arena.apply(arena.history.len(), ALL).await?, "the sink died");
            ensure!(proxy.deliver()? == 1, "nothing came late");
            arena.compare().with_context(|| format!("{variant:?}, {name}"))?;
        }
    }
    Ok(())
}

/// What binds a batch's rows together is that they come by one insert, and so as one part, however many they are: whole rows,
/// rows that the target completes, and tombstones.
#[tokio::test(flavor = "multi_thread")]
async fn batch_of_any_size_is_one_part() -> Result<()> {
    // Two blocks of each kind.
    const ROWS: u64 = 70_000;
    let (server, proxy) = stage("ch-part")?;
    for variant in [Variant::Plain, Variant::Computed] {
        let mut arena = Arena::new(&server, &proxy, variant)?;
        server.query(&format!("SYSTEM STOP MERGES {}", arena.plan.target))?;
        let parts = format!(
            "SELECT count() FROM system.parts WHERE database = 'model' AND table = '{}' AND active",
            arena.plan.target.name
        );
        for (count, changes) in [
            (1, (0..ROWS).flat_map(|row| ["a", "b"].map(|name| Change::Insert((row, name)))).collect::<Vec<_>>()),
            (
                2,
                (0..ROWS)
                    .flat_map(|row| {
                        let (one, other) = ((row, "a"), (row, "b"));
                        [Change::Update(one, one, [true, false]), Change::Delete(other), Change::Insert((row, "c"))]
                    })
                    .collect(),
            ),
        ] {
            arena.history.commit_these(&changes);
            ensure!(arena.apply(arena.history.len(), ALL).await?, "the sink died");
            let found = server.number(&parts)?;
            ensure!(found == count, "{variant:?}: {found} parts after {count} batches");
        }
    }
    Ok(())
}
