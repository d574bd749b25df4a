// A table from which one row is chosen: by a click anywhere in it, or with the arrow keys and Enter. A head sorts, numbers as
// numbers. Built of text nodes only; a tick touches only what has changed, so that focus and the scrolled place stay.
function make(tag, className, text) {
  const node = document.createElement(tag)
  if (className) node.className = className
  if (text !== undefined) node.textContent = text
  return node
}

// What has no value comes last, whichever way it is sorted.
function compared(one, other, downwards) {
  if (one === null || other === null) return (one === null) - (other === null)
  const order = typeof one === 'number' && typeof other === 'number' ? one - other : String(one).localeCompare(String(other), 'en')
  return downwards ? -order : order
}

function heads(host, columns) {
  const stamp = JSON.stringify(columns)
  if (host.columns === stamp) return
  host.columns = stamp
  const row = make('tr')
  columns.forEach((column, place) => {
    const head = make('th', column.number ? 'number' : '')
    head.scope = 'col'
    const button = make('button', '', column.name)
    button.type = 'button'
    button.title = column.help
    button.onclick = () => {
      const [by, downwards] = host.sorting ?? []
      // First the way that is asked for most: names from A, numbers from the largest; then the other way; then as it came.
      const first = Boolean(column.number)
      host.sorting = by !== place ? [place, first] : downwards === first ? [place, !first] : null
      host.order()
    }
    head.append(button)
    row.append(head)
  })
  host.head.replaceChildren(row)
}

function fill(host, row, data) {
  const line = row.line
  if (row.stamp !== JSON.stringify(data.cells)) {
    row.stamp = JSON.stringify(data.cells)
    line.replaceChildren(...data.cells.map(([text, value], place) => {
      const cell = make(place === 0 ? 'th' : 'td', typeof value === 'number' ? 'number' : '', text)
      if (place === 0) cell.scope = 'row'
      return cell
    }))
  }
  row.values = data.cells.map(([, value]) => value)
  line.setAttribute('aria-selected', String(data.id === host.chosen))
  line.tabIndex = data.id === host.chosen ? 0 : -1
}

function row(host, id) {
  const line = make('tr')
  const choose = () => {
    host.chosen = id
    for (const [other, { line: each }] of host.rows) {
      each.setAttribute('aria-selected', String(other === id))
      each.tabIndex = other === id ? 0 : -1
    }
    host.tell('picked', id)
  }
  line.onclick = () => { if (!window.getSelection()?.toString()) choose() }
  line.ondblclick = () => host.tell('opened', id)
  line.onkeydown = (event) => {
    const lines = [...host.body.children]
    const to = { ArrowDown: line.nextSibling, ArrowUp: line.previousSibling, Home: lines[0], End: lines.at(-1) }[event.key]
    if (to) { event.preventDefault(); to.focus() }
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault()
      if (event.key === 'Enter' && host.chosen === id) host.tell('opened', id)
      else choose()
    }
  }
  return { line }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const host = parentElement.querySelector('.choices')
  host.tell = (kind, id) => setTriggerValue(kind, { id, nonce: Math.random() })
  if (!host.rows) {
    host.rows = new Map()
    const table = make('table')
    table.setAttribute('role', 'grid')
    host.head = make('thead')
    host.body = make('tbody')
    table.append(host.head, host.body)
    host.append(table)
    host.table = table
  }
  host.table.setAttribute('aria-label', data.label)
  host.chosen = data.chosen
  heads(host, data.columns)
  host.order = () => {
    const [by, downwards] = host.sorting ?? []
    const ids = data.rows.map(({ id }) => id)
    const value = (id) => host.rows.get(id).values[by]
    if (by !== undefined) ids.sort((one, other) => compared(value(one), value(other), downwards))
    ids.forEach((id, place) => {
      const { line } = host.rows.get(id)
      if (host.body.children[place] !== line) host.body.insertBefore(line, host.body.children[place] ?? null)
    })
    host.head.querySelectorAll('th').forEach((head, place) => {
      head.setAttribute('aria-sort', place !== by ? 'none' : downwards ? 'descending' : 'ascending')
    })
  }
  const ids = new Set(data.rows.map(({ id }) => id))
  for (const [id, { line }] of host.rows) if (!ids.has(id)) { line.remove(); host.rows.delete(id) }
  for (const each of data.rows) {
    if (!host.rows.has(each.id)) host.rows.set(each.id, row(host, each.id))
    fill(host, host.rows.get(each.id), each)
  }
  host.order()
}
