/*
 * The protocol's core, exhaustively: fault and unmap against each other, against reclaim, against a read-only walk
 * and against the hardware's walker, while table pages are recycled without end.
 *
 * Modelled
 *   - One tree of two levels: a root of ROOTS entries, and leaf tables of one entry each, so that an entry of the root is
 *     one IPA, and a table is empty when its one entry is none.
 *   - PAGES table pages and FRAMES frames, each recycled any number of times. A descriptor's value is the page's number
 *     alone: a page that comes back to the same place gives an equal value (ABA).
 *   - CPUS processes that fault and unmap in any order, one reclaimer, one read-only reader. The hardware's walkers are no
 *     process but something that happens at every store (`hardware_walks`): the fullest caches there can be.
 *   - Per table a lock and metadata that outlive its use; markers; claims; read sections, quiescent and offline
 *     states, grace periods; the hardware's cached table and leaf entries, which only an invalidation takes away.
 *   - Every process may stop for good between two operations. So a deadlock of only some of them is found, too: it is an
 *     invalid end state once the others have stopped.
 *
 * Abstracted away, and so not proved here
 *   - Memory order. Each step is one atomic step, seen by all at once. Between CPUs: loom, and qsbr.pml for the one handshake
 *     that needs a store seen before a load. Between CPU and MMU: invalidate.pml and the litmus files.
 *   - Dirty state, the access flag, permissions, blocks, freeze, VMIDs, several trees, more than one leaf of a table.
 *   - Changes (C12, C13) and open gathers: what an operation may tell its caller of what another is still doing.
 *   - Grace periods are the set of readers that are still waited for; the epochs that stand for it are in qsbr.pml.
 *   - The idle period of a hint, budgets and caps: they only delay, and here anything may happen at any time.
 *   - Liveness under unfair scheduling. What is proved is that a walk couples locks after TRIES tries and then succeeds.
 *
 * A step is `atomic` where it is one access to what others may touch, with any number of accesses to what only this process may
 * touch: its own variables, and what its lock protects from everybody who would disturb it.
 *
 * Broken variants (-D...), each with the assertion it violates, are listed in README.md.
 */

#ifndef CPUS
#define CPUS 2          /* 1 or 2 */
#endif
#ifndef ROOTS
#define ROOTS 1         /* 1 or 2 */
#endif
#define PAGES 2         /* `first` chooses between two */
#define FRAMES 2
#ifndef TRIES
#define TRIES 1         /* OPTIMISTIC_TRIES: 4 in the code, and the argument does not depend on it */
#endif

#define READERS (CPUS + 1)     /* slots of readers: the CPUs, then the read-only one */
#define READ_ONLY CPUS
#define RECLAIMER (CPUS + 1)   /* holds locks and has no slot: it polls between its own sections */
#define NOBODY 255
#define one(n) (1 << (n))

/* ---- The properties, by name. None is ever true: `assert(name)` is a violation that says its name. ---- */
bool mapping_only_in_a_linked_table, no_reader_in_a_freed_table, hardware_never_in_a_freed_table,
     hardware_never_reaches_a_frame_given_back, no_reader_of_a_freed_frame, one_translation_of_an_address,
     one_table_over_an_address, stores_only_under_the_lock, frame_given_back_once, a_sound_tree_is_never_called_corrupt,
     a_hint_is_linked, a_walk_is_bounded;
#define first(condition) (condition(1) || condition(2)) -> p = (condition(1) -> 1 : 2)
#define must(condition, property) if :: (condition) :: else -> assert(property) fi

/* ---- Memory. Table 0 is the root; pages are 1..PAGES; frames are 1..FRAMES; 0 is none. ---- */
mtype = { Free, Spare, Live, Hinted, Unlinked, Retired };             /* TableState; Spare and Retired are Rust types */
mtype = { None, Page, Removing, Claimed };                            /* Kind of a leaf */
mtype = { Unused, Owned, Handed };                                    /* a frame: the embedder's, the tree's, Quiescing */

byte root[ROOTS];                      /* entries of the root: the page, or none, or ... */
#define BREAKING 100                   /* ... a marker on the way to none (TABLE_MARKER only) */
typedef Table {
  byte locked_by = NOBODY;             /* TableMeta::lock */
  byte base;                           /* owner and base: the IPA it covers, and one; 0 is nobody's */
  mtype state = Free;
  mtype leaf = None;                   /* its one entry: kind, ... */
  byte target;                         /* ... frame, kept by a marker, ... */
  byte marker;                         /* ... and whose marker it is */
  byte waits                           /* Quiescing<Batch>: readers that are still waited for */
};
Table table[PAGES + 1];
typedef Frame { mtype state = Unused; byte waits };
Frame frame[FRAMES + 1];

/* ---- Readers ---- */
byte online;                           /* slots that are not 0 */
byte period[CPUS];                     /* a grace period an unmapper began: readers that are still waited for */
byte in_table[READERS];                /* ghost: the table a section may still look into */
byte at_frame;                         /* ghost: the frame the read-only reader may still look at */

/* ---- The hardware's caches, by IPA: sets of pages, of frames ---- */
byte cached_tables[ROOTS];
byte cached_leaves[ROOTS];

/* What a test of the model itself asks for: that the interesting states are reached. */
bool the_state_is_reached;
byte recycled;                         /* ghost, for WITNESS_RECYCLED only */

/* TableMeta::lock, inside a step, and the drop of its guard */
inline lock(t) { table[t].locked_by == NOBODY -> table[t].locked_by = me }
inline unlock(t) { must(table[t].locked_by == me, stores_only_under_the_lock); table[t].locked_by = NOBODY }

/*
 * The hardware's walkers, most pessimistic: after every store they have cached what any walk can find from memory or from
 * a cached table entry. They forget nothing by themselves. No walker that is lazier can hold more at any time, and the
 * protocol does not look at the caches: what holds for this one holds for all.
 */
inline walk_through(ipa, w) {
  if
  :: (cached_tables[ipa] & one(w)) != 0 ->
     must(table[w].state != Free && table[w].state != Spare, hardware_never_in_a_freed_table);
     if
     :: table[w].leaf == Page ->
        must(frame[table[w].target].state == Owned, hardware_never_reaches_a_frame_given_back);
        cached_leaves[ipa] = cached_leaves[ipa] | one(table[w].target)
     :: else
     fi
  :: else
  fi
}
inline hardware_walks(ipa) {
  cached_tables[ipa] = cached_tables[ipa] | (root[ipa] != 0 && root[ipa] <= PAGES -> one(root[ipa]) : 0);
  walk_through(ipa, 1);
  walk_through(ipa, 2)
}

/* Gather::flush, all of it: when it returns no TLB holds what was removed. Walks in flight are cached entries. */
inline flush_leaves(ipa) { cached_leaves[ipa] = 0; hardware_walks(ipa) }
inline flush_tables(ipa) {
#ifndef LEAF_ONLY
  cached_tables[ipa] = 0;
#endif
  flush_leaves(ipa)
}

/*
 * Reader::online: whoever begins a grace period from here on waits for this reader. One step with the first look: to be
 * waited for earlier only delays others.
 */
inline section_begins() { online = online | one(me) }

/* Batch<Quiesced>::free: nobody may be in it */
inline free_table(p) {
  must(in_table[0] != p && in_table[CPUS - 1] != p && in_table[READ_ONLY] != p, no_reader_in_a_freed_table);
  must(((cached_tables[0] | cached_tables[ROOTS - 1]) & one(p)) == 0, hardware_never_in_a_freed_table);
  table[p].state = Free
}

/* Quiescing::poll: everything is freed in the very step in which it may be. Later is only slower. */
inline poll_table(p) { if :: table[p].state == Retired && table[p].waits == 0 -> free_table(p) :: else fi }
inline poll_frame(p) {
  if
  :: frame[p].state == Handed && frame[p].waits == 0 -> must(at_frame != p, no_reader_of_a_freed_frame); frame[p].state = Unused
  :: else
  fi
}

/* Reader::quiescent or Reader::offline: no grace period that was begun waits for this reader any more */
inline announce() {
  online = online & ~one(me);
  period[0] = period[0] & ~one(me);
  period[CPUS - 1] = period[CPUS - 1] & ~one(me);
  table[1].waits = table[1].waits & ~one(me); poll_table(1);
  table[2].waits = table[2].waits & ~one(me); poll_table(2);
  frame[1].waits = frame[1].waits & ~one(me); poll_frame(1);
  frame[2].waits = frame[2].waits & ~one(me); poll_frame(2)
}
inline section_ends() { in_table[me] = 0; announce() }

/* The table is not looked at again in this section. */
inline leave() { t = 0; in_table[me] = 0 }

/* One load of the root's entry: a table or none. */
inline load(ipa) { t = (root[ipa] <= PAGES -> root[ipa] : 0); in_table[me] = t }

/* ReadWrite::admit: does the table say so, too? It always does, or somebody broke the tree. */
inline admit(ipa) {
#if !defined(NO_RECHECK) && !defined(RECHECK_OUTSIDE_LOCK) && !defined(RECHECK_LEAF_INSTEAD)
  must(t == 0 || table[t].base == ipa + 1, a_sound_tree_is_never_called_corrupt);
#endif
  tries = 0
}

/*
 * ReadWrite::lock for the leaf table over `ipa`. Returns with `t` locked; 0 is the root: there is no leaf table.
 */
inline read_write_lock(ipa) {
  do
  :: atomic { tries < TRIES -> load(ipa) };             /* walk::descend */
#ifdef QUIESCENT_IN_SECTION
     d_step { announce(); section_begins() };           /* Reader::quiescent: `&mut Reader` makes it a compile error */
#endif
#ifdef RECHECK_OUTSIDE_LOCK
     if
     :: atomic { t == 0 || root[ipa] == t -> skip }; atomic { lock(t); admit(ipa); break }  /* ReadWrite::lock, no more */
     :: atomic { t != 0 && root[ipa] != t -> tries++ }           /* the same: ReadWrite::lock */
     fi
#else
     atomic {                                           /* ReadWrite::lock */
       lock(t);                                         /* TableMeta::lock */
       if
#if defined(NO_RECHECK) || defined(OWNER_INSTEAD_OF_PARENT)
       :: true -> admit(ipa); break
#elif defined(RECHECK_LEAF_INSTEAD)
       :: t == 0 || table[t].leaf == None || root[ipa] == t -> admit(ipa); break
#else
       :: t == 0 || root[ipa] == t -> admit(ipa); break /* ParentSnapshot::is_unchanged, the lock held */
#endif
       :: else -> unlock(t); leave(); tries++
       fi
     }
#endif
  :: atomic { tries == TRIES && table[0].locked_by == NOBODY -> lock(0); load(ipa) };    /* ReadWrite::couple */
#ifdef WITNESS_COUPLE
     assert(the_state_is_reached);
#endif
#ifdef NO_FALLBACK
     assert(a_walk_is_bounded);
#endif
     atomic { if :: t != 0 -> lock(t); unlock(0) :: else fi; admit(ipa); break }   /* ReadWrite::couple */
  od
}

/* Locked::replace of a leaf by a valid one */
inline install(ipa, f) {
  must(table[t].locked_by == me, stores_only_under_the_lock);
  must(root[ipa] == t, mapping_only_in_a_linked_table);
  must((cached_leaves[ipa] & ~one(f)) == 0, one_translation_of_an_address);           /* break-before-make, rule 6 */
  table[t].leaf = Page; table[t].target = f;
  hardware_walks(ipa)
}

/* Locked::replace of a leaf by none */
inline clear() {
  must(table[t].locked_by == me, stores_only_under_the_lock);
  table[t].leaf = None; table[t].target = 0; table[t].marker = 0
}

/* Loaded::resolve of a translation fault: Stage2::page_in, Stage2::install, Stage2::lock_table */
inline fault(ipa) {
  atomic { /* Backing::page: a frame the embedder has; no lock held */
    (frame[1].state == Unused || frame[2].state == Unused) ->
    f = (frame[1].state == Unused -> 1 : 2);
    frame[f].state = Owned;
    section_begins()
  };
  do
  :: read_write_lock(ipa);
     atomic {                                                                       /* Stage2::install */
       if
       :: t != 0 ->
          if
          :: table[t].leaf == None -> install(ipa, f); f = 0                         /* Installed::Ours */
          :: else                                                                   /* Installed::Theirs or Busy */
#ifdef WITNESS_MARKER
             -> must(table[t].leaf != Claimed, the_state_is_reached)
#endif
          fi;
          unlock(t);
          leave();
          break
       :: t == 0 && root[ipa] == BREAKING -> unlock(0); break                        /* NoLeafTable::Entry: Retry */
       :: t == 0 && root[ipa] != 0 && root[ipa] <= PAGES -> unlock(0)                /* linked by another since: go on down */
       :: t == 0 && root[ipa] == 0 && spare != 0 ->                                 /* Locked::link */
          must(table[0].locked_by == me, stores_only_under_the_lock);
          lock(spare);                                                              /* TableMeta::adopt: its lock, under its parent's */
          table[spare].base = ipa + 1; table[spare].state = Live; unlock(spare);
#ifdef STRICT_TABLES
          must((cached_tables[ipa] & ~one(spare)) == 0, one_table_over_an_address);
#endif
          root[ipa] = spare; spare = 0;
          hardware_walks(ipa);
          unlock(0)
#ifdef WITNESS_RECYCLED
          ; recycled++; must(recycled < 3 * PAGES, the_state_is_reached)
#endif
       :: t == 0 && root[ipa] == 0 && spare == 0 -> unlock(0);                      /* Spares::prepare: zeroed; no lock held */
          spare = (table[1].state == Free -> 1 : (table[2].state == Free -> 2 : 0));
          if
          :: spare != 0 -> table[spare].state = Spare; table[spare].leaf = None
          :: else -> break                                                          /* OutOfTables, or Retry */
          fi
       fi
     }
  od;
  atomic { /* Backing::unused; the drop of a SpareTable: nobody has seen it */
    if :: f != 0 -> frame[f].state = Unused; f = 0 :: else fi;
    if :: spare != 0 -> table[spare].state = Free; spare = 0 :: else fi;
    section_ends()
  }
}

/* Stage2::for_each_locked: a hole is skipped without a lock; what was detached since is looked at again. */
inline lock_found(ipa) {
  do
  :: atomic { section_begins(); load(ipa); if :: t == 0 -> break :: else -> leave() fi };     /* ReadOnly::visit */
     read_write_lock(ipa);
     atomic { if :: t != 0 -> break :: else -> unlock(0) fi }      /* Stage2::for_each_locked, its next round */
  od
}

#ifdef SETTLE_OTHERS
#define mine (true)                    /* any marker that is still unclaimed */
#else
#define mine (table[t].marker == me)   /* Descriptor::remover: only one's own was surely made before the own flush */
#endif

/* Stage2::hint_if_empty, ReclaimState::hint; the table's lock is held */
inline hint() { if :: table[t].leaf == None && table[t].state == Live -> table[t].state = Hinted :: else fi }

/* Stage2::unmap_with: mark, flush, settle */
inline unmap(ipa) {
  lock_found(ipa);                                                                  /* Stage2::for_each_locked */
  atomic {                                                                          /* Stage2::mark */
    if
    :: t == 0
    :: else ->
       marked = (table[t].leaf != None);
       if
       :: table[t].leaf == Page ->                                                  /* Descriptor::into_removing: the marker, ours */
          must(table[t].locked_by == me, stores_only_under_the_lock);
#ifdef CLEAR_BEFORE_FLUSH
          f = table[t].target; clear()
#else
          table[t].leaf = Removing; table[t].marker = me
#endif
       :: else
       fi;
       unlock(t);
       leave()
    fi
  };
  atomic {                                                                          /* Gather::flush */
#ifndef UNMAP_WITHOUT_FLUSH
    if :: marked -> flush_leaves(ipa) :: else fi;                                   /* Gather::flush: nothing if nothing was */
#endif
#ifdef CLEAR_BEFORE_FLUSH
    if :: f != 0 -> frame[f].state = Handed; frame[f].waits = online & one(READ_ONLY); poll_frame(f); f = 0 :: else fi;
#endif
    marked = false;
    period[me] = online & one(READ_ONLY)                                                             /* Quiescence::begin */
  };
  lock_found(ipa);                                                                  /* Stage2::for_each_locked */
  atomic {                                                                          /* Stage2::settle_with: claim */
    if
    :: t == 0
    :: else ->
       if
       :: table[t].leaf == Removing && mine -> table[t].leaf = Claimed; f = table[t].target
       :: else
       fi;
       unlock(t);
       leave()
    fi;
    if :: f == 0 -> period[me] = 0 :: else fi
  };
  if
  :: atomic { f == 0 -> section_ends() }                                            /* Reader::quiescent */
  :: atomic { f != 0 -> /* Stage2::release: the caller may move the content from here on; for reuse it has to wait */
       must(frame[f].state == Owned, frame_given_back_once);
       must(((cached_leaves[0] | cached_leaves[ROOTS - 1]) & one(f)) == 0, hardware_never_reaches_a_frame_given_back);
       frame[f].state = Handed;
#ifdef FRAME_WITHOUT_GRACE
       frame[f].waits = 0;
#else
       frame[f].waits = period[me];
#endif
       poll_frame(f);
       period[me] = 0; f = 0
     };
     read_write_lock(ipa);                                                          /* Stage2::finish_claimed */
     atomic {                                                                       /* Stage2::finish */
       must(t != 0, mapping_only_in_a_linked_table);
       clear(); hint(); unlock(t); leave();
       section_ends()
     }
  fi
}

/* A CPU: resolves faults, unmaps, may stop between two operations; the guest runs in an extended quiescent state */
proctype Cpu(byte me) {
  byte t, f, spare, tries;
  bool marked;
  do
  :: fault(0)
  :: unmap(0)
#if ROOTS > 1
  :: fault(1)
  :: unmap(1)
#endif
  :: true -> break
  od
}

/*
 * Somebody who looks: DirtyLog::scan, Stage2::query, a harvester that copies a page. It may take any time before it
 * reads the leaf, so what it does with the table after that adds nothing.
 */
proctype ReadOnly() {
  byte t;
  byte me = READ_ONLY;
  do
  :: atomic { root[0] != 0 -> section_begins(); load(0) };                          /* ReadOnly::find: the parent's entry */
     if
     :: atomic { table[t].leaf == Page -> at_frame = table[t].target; in_table[me] = 0; t = 0 }    /* Table::read: the leaf */
     :: atomic { table[t].leaf != Page -> skip }                                       /* Table::read */
     fi;
     d_step { at_frame = 0; section_ends(); t = 0 }                                   /* Reader::quiescent */
  :: true -> break
  od
}

/* Locked::detach_empty: the parent's entry is cleared, the child's identity is gone */
inline detach() {
  must(table[0].locked_by == me, stores_only_under_the_lock);
  must(table[p].leaf == None, mapping_only_in_a_linked_table);
  table[p].base = 0;
  table[p].state = Unlinked;
#ifdef TABLE_MARKER
  root[i] = BREAKING;
#else
  root[i] = 0;
#endif
#ifndef NO_CHILD_LOCK
  unlock(p);
#endif
  unlock(0)
}

#define hinted(t) (table[t].state == Hinted)

/* Stage2::reclaim */
proctype Reclaimer() {
  byte p, i;
  byte me = RECLAIMER;
  do
  :: atomic { /* HintList::take_all, List::pop */
       first(hinted); i = table[p].base - 1
     };
#ifdef CHILD_BEFORE_PARENT
     atomic { lock(p) };                                                              /* TableMeta::lock */
     atomic { lock(0) };                                                              /* TableMeta::lock: the wrong order */
#else
     atomic { lock(0) };                                                            /* ReadWrite::lock of the parent */
     atomic {                                                                       /* Locked::detach_empty */
       lock(p);
#endif
#ifdef CHILD_BEFORE_PARENT
     atomic {                                                                         /* Locked::detach_empty */
#endif
       must(root[i] == p, a_hint_is_linked);
       if
       :: table[p].leaf != None -> table[p].state = Live; unlock(p); unlock(0); p = 0; i = 0      /* Kept::InUse */
       :: else ->
#ifdef NO_CHILD_LOCK
          unlock(p)
#else
          detach()
#endif
       fi
     };
     if
     :: p == 0 -> skip
     :: else ->
#ifdef NO_CHILD_LOCK
        atomic { detach() };                                                          /* Locked::detach_empty */
#endif
#ifdef FREE_BEFORE_FLUSH
        atomic { table[p].waits = online; table[p].state = Retired; poll_table(p) };          /* Quiescence::retire */
        atomic { table[p].state != Retired -> skip };                                 /* Quiescing::poll */
        atomic { flush_tables(i); p = 0; i = 0 }                                      /* Gather::flush */
#else
#ifndef NO_FLUSH
        atomic { flush_tables(i) };                                                 /* Gather::flush, Batch::invalidated */
#endif
#ifdef TABLE_MARKER
        atomic { lock(0); root[i] = 0; unlock(0) };                                    /* Locked::finish_detach */
#endif
        atomic { /* Quiescence::retire */
#ifdef NO_GRACE
          table[p].waits = 0;
#else
          table[p].waits = online;
#endif
          table[p].state = Retired; poll_table(p);
          p = 0; i = 0
        }
#endif
     fi
  :: true -> break
  od
}

init {
  atomic { /* model: all at once */
    byte c;
    c = 0; do :: c < CPUS -> run Cpu(c); c++ :: else -> break od; c = 0;
    run ReadOnly(); run Reclaimer()
  }
}
