// The answers, before and now. Built of text nodes only; a part is touched only when its own data changed, so that
// half-typed text, selection, focus and opened folds stay as they are from tick to tick.
const FOLD_WORDS = 60

function make(tag, className, text) {
  const node = document.createElement(tag)
  if (className) node.className = className
  if (text !== undefined) node.textContent = text
  return node
}

function selecting(node) {
  const selection = window.getSelection()
  return selection && !selection.isCollapsed && node.contains(selection.anchorNode)
}

function fill(node, segments, open) {
  let left = open ? Infinity : FOLD_WORDS
  let beyond = 0
  node.replaceChildren()
  for (const [kind, text] of segments) {
    const words = text.split(/\s+/).filter(Boolean).length
    if (left <= 0) { beyond += words; continue }
    let shown = text
    if (words > left) {
      shown = text.match(new RegExp(`(?:\\s*\\S+){${left}}`))[0]
      beyond += words - left
    }
    left -= words
    node.append(kind === 'same' ? document.createTextNode(shown) : make(kind, '', shown))
  }
  if (beyond) node.append(document.createTextNode(' …'))
  return beyond
}

function paint(part, segments, quiet) {
  const stamp = JSON.stringify([segments, quiet, part.open])
  part.latest = [segments, quiet]
  if (part.stamp === stamp || (part.stamp && selecting(part.text))) return
  part.stamp = stamp
  part.text.classList.toggle('quiet', Boolean(quiet))
  const beyond = fill(part.text, segments, part.open)
  part.more.hidden = !beyond && !part.open
  part.more.textContent = part.open ? 'less' : `${beyond} more words`
  part.more.setAttribute('aria-expanded', String(Boolean(part.open)))
}

function makePart(label) {
  const row = make('div', 'part')
  const part = { row, name: make('span', 'when', label), text: make('p', 'said'), more: make('button', 'link more') }
  part.more.type = 'button'
  part.more.hidden = true
  part.more.onclick = () => { part.open = !part.open; paint(part, ...part.latest) }
  row.append(part.name, part.text, part.more)
  return part
}

function makeForm(label, button, send, roles) {
  const form = make('form', 'ask')
  form.hidden = true
  const area = make('textarea')
  area.rows = 2
  area.maxLength = 4000
  area.placeholder = 'Write a question; Escape leaves it as it is.'
  area.setAttribute('aria-label', label)
  const row = make('div', 'row')
  let role = null
  if (roles) {
    role = make('select')
    role.setAttribute('aria-label', 'Role of the question')
    for (const [value, name] of roles) {
      const option = make('option', '', name)
      option.value = value
      role.append(option)
    }
    row.append(role)
  }
  const apply = make('button', 'apply', button)
  apply.type = 'submit'
  const cancel = make('button', 'link', 'Cancel')
  cancel.type = 'button'
  row.append(apply, cancel)
  form.append(area, row)
  const close = () => { form.hidden = true; form.opener?.focus() }
  cancel.onclick = close
  form.onkeydown = (event) => {
    event.stopPropagation()
    if (event.key === 'Escape') close()
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit()
  }
  form.onsubmit = (event) => {
    event.preventDefault()
    if (!area.value.trim()) { area.value = ''; area.focus(); return }
    send(area.value, role?.value)
    if (roles) area.value = '' // a new wording stays: where it is refused, it can be shortened
    close()
  }
  form.area = area
  form.show = (text, opener) => {
    form.opener = opener
    form.hidden = !form.hidden
    if (!form.hidden) { if (!area.value) area.value = text; area.focus() }
  }
  return form
}

function makeCard(slot, host) {
  const card = make('article', 'card')
  const head = make('div', 'head')
  const it = { card, role: make('span', 'role'), prompt: make('h3'), edit: make('button', 'link edit', 'edit') }
  it.edit.type = 'button'
  head.append(it.role, it.prompt, it.edit)
  it.form = makeForm('New wording of the question', 'Ask it this way', (text) => host.send({ slot, role: it.data.role, text }))
  it.edit.onclick = () => it.form.show(it.data.prompt, it.edit)
  it.before = makePart('before')
  it.now = makePart('now')
  it.now.row.classList.add('latest')
  it.other = make('details', 'stand-in')
  it.otherPrompt = make('p', 'asked')
  it.otherText = make('p', 'told')
  it.other.append(make('summary', '', 'before, about an invented name'), it.otherPrompt, it.otherText)
  it.note = make('p', 'note')
  card.append(head, it.form, it.before.row, it.now.row, it.other, it.note)
  return it
}

function update(it, data, host) {
  it.data = data
  it.role.textContent = data.tag
  it.role.dataset.role = data.role
  if (it.prompt.textContent !== data.prompt) it.prompt.textContent = data.prompt
  it.edit.hidden = host.fixed || data.slot === null
  it.edit.disabled = !host.editable
  it.edit.title = host.reason || 'Change this question; it is asked in the new wording from the next step on'
  it.edit.setAttribute('aria-label', `edit: ${data.prompt}`)
  it.before.row.hidden = data.state !== 'changed'
  it.before.name.textContent = data.before_name
  it.now.name.textContent = data.now_name
  it.card.dataset.state = data.state
  if (data.state === 'changed') paint(it.before, data.before)
  paint(it.now, data.now, data.state !== 'changed')
  it.other.hidden = !data.stand_in
  if (data.stand_in && !selecting(it.otherText)) {
    const [question, text] = data.stand_in
    if (it.otherPrompt.textContent !== question) it.otherPrompt.textContent = question
    if (it.otherText.textContent !== text) it.otherText.textContent = text
  }
  it.note.textContent = data.note || ''
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector('.answers')
  const host = (root.host ??= { cards: new Map() })
  host.send = (asked) => setTriggerValue('asked', { ...asked, nonce: Math.random() })
  host.editable = data.editable
  host.reason = data.reason
  host.fixed = !data.adding
  root.classList.toggle('fresh', host.fixed)
  if (!host.list) {
    host.list = make('div', 'list')
    host.add = make('button', 'link add', '+ ask something')
    host.add.type = 'button'
    host.form = makeForm('A new question', 'Ask', (text, role) => host.send({ slot: null, role, text }),
      [['free', 'free'], ['forget', 'forget: about the target'], ['retain', 'retain: what the model should keep']])
    host.add.onclick = () => host.form.show('', host.add)
    root.append(host.list, host.add, host.form)
  }
  const seen = new Set()
  data.cards.forEach((card, place) => {
    seen.add(card.key)
    if (!host.cards.has(card.key)) host.cards.set(card.key, makeCard(card.slot, host))
    const it = host.cards.get(card.key)
    update(it, card, host)
    if (host.list.children[place] !== it.card) host.list.insertBefore(it.card, host.list.children[place] ?? null)
  })
  for (const [key, it] of host.cards) if (!seen.has(key)) { it.card.remove(); host.cards.delete(key) }
  host.add.hidden = !data.adding
  host.add.disabled = !data.editable
  host.add.title = data.reason || ''
}
