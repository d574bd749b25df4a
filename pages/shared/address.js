// What only changes how a page is looked at (a step, a zoom, the columns of Compare) replaces the browser's history entry:
// Back leads to the page, the run or the card before, not through every stop of a slider. Streamlit adds an entry each time.
const lookedAt = (address) => {
  const { pathname, searchParams } = new URL(address, window.location.href)
  return { page: `${pathname} ${searchParams.has('new')}`, run: searchParams.get('run') }
}

export default function () {
  const history = window.history
  if (history.keepsPages) return
  history.keepsPages = true
  const push = history.pushState.bind(history)
  history.pushState = (state, title, address) => {
    const [from, to] = [lookedAt(window.location.href), lookedAt(address ?? window.location.href)]
    const same = from.page === to.page && (from.run === to.run || from.run === null)
    return same ? history.replaceState(state, title, address) : push(state, title, address)
  }
}
