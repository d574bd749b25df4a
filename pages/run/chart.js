// A Plotly figure that is redrawn by Plotly.react: zoom, hover and hidden series stay from tick to tick.
const DOUBLE_CLICK = 300 // milliseconds, as Plotly has it
let loading

function load() {
  if (window.Plotly) return Promise.resolve()
  loading ??= new Promise((done, failed) => {
    const script = document.createElement('script')
    script.src = `${document.baseURI.replace(/[?#].*$/, '').replace(/(compare|runs)\/?$/, '')}app/static/plotly.min.js`
    script.onload = done
    script.onerror = () => { loading = undefined; failed(new Error('the chart library could not be loaded')) }
    document.head.appendChild(script)
  })
  return loading
}

// "@text" and the like in the figure stand for the colours of the theme that the person chose.
function dressed(value, colours) {
  if (typeof value === 'string') return value[0] === '@' ? colours[value.slice(1)] : value
  if (Array.isArray(value)) return typeof value[0] === 'number' ? value : value.map((item) => dressed(item, colours))
  if (value && typeof value === 'object')
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, dressed(item, colours)]))
  return value
}

function colours(host) {
  const style = getComputedStyle(host)
  const text = style.color
  const channels = text.match(/[\d.]+/g).slice(0, 3).map(Number)
  const dark = channels.reduce((sum, channel) => sum + channel, 0) > 382
  const soft = (alpha) => `rgba(${channels.join(',')},${alpha})`
  return {
    font: style.fontFamily, text, quiet: soft(dark ? 0.72 : 0.68), grid: soft(0.11), axis: soft(0.3), band: soft(0.1), reference: soft(0.55),
    background: dark ? '#24262b' : '#ffffff', paper: dark ? 'rgba(22,24,28,.85)' : 'rgba(255,255,255,.85)',
    forget: dark ? '#F07A2B' : '#C25400', retain: dark ? '#56A9E0' : '#0068A3',
    neighbour: dark ? '#25C194' : '#007A58', holdout: dark ? '#7FCBF2' : '#24789F', guard: dark ? '#F2B134' : '#946300',
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const host = parentElement.querySelector('.live')
  host.setAttribute('aria-label', data.alt)
  host.style.height = `${data.height}px`
  load().then(() => {
    const figure = dressed(JSON.parse(data.figure), colours(host))
    figure.layout.uirevision = data.revision
    // The zoom lives here: a tick that was drawn before the page heard of it must not undo it.
    const turn = `${data.revision} ${data.turn}`
    if (host.turn !== turn) { host.turn = turn; host.zoom = data.zoom }
    host.whole = data.whole
    const range = (figure.layout.xaxis.range = host.zoom ?? data.whole)
    // Only what belongs to the step under the pointer is told: half a step to either side.
    figure.layout.hoverdistance = Math.max(3, Math.ceil((host.clientWidth - 158) / (range[1] - range[0]) / 2))
    return window.Plotly.react(host, figure.data, figure.layout, {
      displaylogo: false, responsive: true, showSendToCloud: false, displayModeBar: false, scrollZoom: false,
      doubleClick: false, locale: 'en',
    })
  }).then(() => {
    if (host.bound) return
    host.bound = true
    // Plotly keeps every touch for itself, and a finger on the chart could not scroll the page. A tap comes as a click.
    host.addEventListener('touchstart', (event) => event.stopPropagation(), { capture: true, passive: true })
    let picking
    const zoom = (range) => {
      host.zoom = range
      setTriggerValue('zoomed', { range: range && range.map(Math.round), nonce: Math.random() })
    }
    host.on('plotly_relayout', (event) => {
      const left = event['xaxis.range[0]'], right = event['xaxis.range[1]']
      if (left !== undefined) zoom([left, right])
    })
    host.on('plotly_doubleclick', () => {
      clearTimeout(picking)
      zoom(null)
      window.Plotly.relayout(host, { 'xaxis.range': host.whole })
    })
    host.on('plotly_click', (event) => {
      clearTimeout(picking) // the first click of two is no choice of a step
      picking = setTimeout(() => setTriggerValue('picked', { step: Math.round(event.points[0].x), nonce: Math.random() }), DOUBLE_CLICK)
    })
  }).catch((error) => { host.textContent = `The chart cannot be drawn: ${error.message}. Reload the page.` })
  return () => { if (window.Plotly && !host.isConnected) window.Plotly.purge(host) }
}
